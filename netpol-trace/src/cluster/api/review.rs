//! Whether the API server can be reached, as whom, and what that account may not read: for `doctor`.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::connect::{Access, AccessError};
use super::error::{ApiError, ApiRequest};
use super::others;

/// What the agent reads: group, resource, verbs.
const RIGHTS: [(&str, &str, &[&str]); 6] = [
    ("networking.k8s.io", "networkpolicies", &["list", "watch"]),
    ("", "pods", &["get", "list", "watch"]),
    ("", "namespaces", &["list", "watch"]),
    ("", "nodes", &["list", "watch"]),
    ("", "services", &["list", "watch"]),
    ("discovery.k8s.io", "endpointslices", &["list", "watch"]),
];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// Where the server is.
    pub server: String,
    pub version: String,
    /// As whom, if the server says it.
    pub user: Option<String>,
    pub missing: Vec<Missing>,
}

/// Verbs on one resource that the account lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub group: String,
    pub resource: String,
    pub verbs: Vec<String>,
}

impl Missing {
    /// The line that RBAC needs.
    pub fn rule(&self) -> String {
        let Missing { group, resource, verbs } = self;
        format!("{{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{}]}}", verbs.join(", "))
    }
}

/// Asks the server. `None` where no server is configured.
pub fn review(access: &Access) -> Option<Result<Review, ApiError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        match access.config().await {
            Err(AccessError::None) => None,
            Err(error) => Some(Err(error.into())),
            Ok(config) => Some(ask(config.cluster_url.to_string(), access).await),
        }
    })
}

async fn ask(server: String, access: &Access) -> Result<Review, ApiError> {
    let client = access.connect().await?;
    let asked = |verb, resource| ApiRequest { verb, group: "", resource, verbs: &["create"] };
    let version =
        client.apiserver_version().await.map_err(|e| ApiError::of(&e, asked("get", "the server's version")))?;
    let user = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .ok()
        .and_then(|review| review.status?.user_info?.username);
    let mut missing = Vec::new();
    let rights = RIGHTS.map(|(group, resource, verbs)| (group.to_owned(), resource.to_owned(), verbs));
    let others = others::find(&client).await?.into_iter().map(|found| {
        let resource = found.resource();
        (resource.group, resource.plural, resource.verbs)
    });
    for (group, resource, verbs) in rights.into_iter().chain(others) {
        let mut lacking = Vec::new();
        for verb in verbs {
            if !may(&client, &group, &resource, verb).await? {
                lacking.push((*verb).to_owned());
            }
        }
        if !lacking.is_empty() {
            missing.push(Missing { group, resource, verbs: lacking });
        }
    }
    Ok(Review { server, version: version.git_version, user, missing })
}

async fn may(client: &Client, group: &str, resource: &str, verb: &str) -> Result<bool, ApiError> {
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let asked = ApiRequest {
        verb: "create",
        group: "authorization.k8s.io",
        resource: "selfsubjectaccessreviews",
        verbs: &["create"],
    };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await;
    Ok(answer.map_err(|error| ApiError::of(&error, asked))?.status.is_some_and(|status| status.allowed))
}
