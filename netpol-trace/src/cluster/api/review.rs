//! Checks for `doctor` that the API server can be reached, and which rights the account lacks.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::super::kinds::KINDS;
use super::super::resource::Watched;
use super::connect::{Access, AccessError};
use super::discovery::discover;
use super::error::{ApiError, ApiRequest};
use super::watch::Collection;

/// The result of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// The server's URL.
    pub server: String,
    pub version: String,
    /// The account, if the server supports SelfSubjectReview.
    pub user: Option<String>,
    pub missing: Vec<Missing>,
}

/// RBAC verbs that the account lacks on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub group: String,
    pub resource: String,
    pub verbs: Vec<String>,
}

impl Missing {
    /// The rule to add to a ClusterRole.
    pub fn rule(&self) -> String {
        let Missing { group, resource, verbs } = self;
        format!("{{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{}]}}", verbs.join(", "))
    }
}

/// Checks the server. `None` if no server is configured.
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
    let request = |verb, resource| ApiRequest { verb, group: "", resource, verbs: &["create"] };
    let version =
        client.apiserver_version().await.map_err(|e| ApiError::of(&e, request("get", "the server's version")))?;
    let user = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .ok()
        .and_then(|review| review.status?.user_info?.username);
    let mut missing = Vec::new();
    let always = KINDS.iter().filter(|entry| entry.info.watched != Watched::WhereServed);
    let always = always.map(|entry| Collection::of(entry.info));
    let discovered = discover(&client).await?.into_iter().map(|discovered| discovered.collection);
    for Collection { group, plural: resource, verbs, .. } in always.chain(discovered) {
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
    let request = ApiRequest {
        verb: "create",
        group: "authorization.k8s.io",
        resource: "selfsubjectaccessreviews",
        verbs: &["create"],
    };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await;
    Ok(answer.map_err(|error| ApiError::of(&error, request))?.status.is_some_and(|status| status.allowed))
}
