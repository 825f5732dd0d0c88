//! Who asks, and what they may see: TokenReview and SubjectAccessReview, for the agent's `tail` listener.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::OnceCell;

use super::api::Access;

/// Tokens are made for this audience, and are good for nothing else.
pub const AUDIENCE: &str = "netpol-trace";
/// The resource that a Role names to let somebody read a namespace's drops. No such objects exist: RBAC doesn't mind.
pub const GROUP: &str = "netpol-trace.io";
pub const RESOURCE: &str = "drops";
/// An answer is good for so long.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const ANSWERS: usize = 4096;

/// Somebody with a token that the API server knows.
#[derive(Debug, Clone)]
pub struct User {
    info: UserInfo,
}

impl User {
    pub fn name(&self) -> &str {
        self.info.username.as_deref().unwrap_or_default()
    }
}

/// Why nothing was answered.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("the token is not good for netpol-trace: {0}")]
    Token(String),
    #[error("the agent can't ask the API server: {0}")]
    Server(String),
}

/// Asks the API server.
pub struct Reviewer {
    access: Access,
    /// The namespace of the agents: who may read their logs sees everything.
    agents: String,
    client: OnceCell<Client>,
    answers: Mutex<HashMap<(String, String), (bool, Instant)>>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").field("agents", &self.agents).finish_non_exhaustive()
    }
}

impl Reviewer {
    pub fn new(access: Access, agents: String) -> Reviewer {
        Reviewer { access, agents, client: OnceCell::new(), answers: Mutex::default() }
    }

    async fn client(&self) -> Result<&Client, ReviewError> {
        let connect = || async { self.access.connect().await };
        self.client.get_or_try_init(connect).await.map_err(|error| ReviewError::Server(error.to_string()))
    }

    /// Whose token this is.
    pub async fn user(&self, token: &str) -> Result<User, ReviewError> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let asked = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client().await?.clone());
        let answer = reviews.create(&PostParams::default(), &asked).await.map_err(server)?;
        let status = answer.status.unwrap_or_default();
        let for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        // A server that knows no audiences says yes to any token: that is not enough.
        match status.user.filter(|_| status.authenticated == Some(true) && for_us) {
            Some(info) => Ok(User { info }),
            None => Err(ReviewError::Token(status.error.unwrap_or_else(|| {
                format!("ask for one with `kubectl create token SERVICEACCOUNT --audience {AUDIENCE}`")
            }))),
        }
    }

    /// Whether they may see every record: those who may read the agents' logs can do so anyway.
    pub async fn may_read_all(&self, user: &User) -> Result<bool, ReviewError> {
        let log = ResourceAttributes {
            namespace: Some(self.agents.clone()),
            verb: Some("get".to_owned()),
            resource: Some("pods".to_owned()),
            subresource: Some("log".to_owned()),
            ..ResourceAttributes::default()
        };
        self.may(user, log).await
    }

    /// Whether they may see the drops of a namespace; answers are good for half a minute.
    pub async fn may_read(&self, user: &User, namespace: &str) -> Result<bool, ReviewError> {
        let key = (user.name().to_owned(), namespace.to_owned());
        let known = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some((may, _)) = known.filter(|(_, at)| at.elapsed() < GOOD_FOR) {
            return Ok(may);
        }
        let drops = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            verb: Some("get".to_owned()),
            group: Some(GROUP.to_owned()),
            resource: Some(RESOURCE.to_owned()),
            ..ResourceAttributes::default()
        };
        let may = self.may(user, drops).await?;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS {
            answers.clear();
        }
        answers.insert(key, (may, Instant::now()));
        Ok(may)
    }

    async fn may(&self, user: &User, what: ResourceAttributes) -> Result<bool, ReviewError> {
        let UserInfo { username, groups, uid, extra } = user.info.clone();
        let spec = SubjectAccessReviewSpec {
            user: username,
            groups,
            uid,
            extra,
            resource_attributes: Some(what),
            ..Default::default()
        };
        let asked = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client().await?.clone());
        let answer = reviews.create(&PostParams::default(), &asked).await.map_err(server)?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

fn server(error: kube::Error) -> ReviewError {
    ReviewError::Server(error.to_string())
}
