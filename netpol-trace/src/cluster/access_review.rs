//! Who asks, and what they may see: TokenReview and SubjectAccessReview, for the agent's listeners.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::OnceCell;

use super::api::Access;
use super::budget::Budget;

/// Tokens are made for this audience, and are good for nothing else.
pub const AUDIENCE: &str = "netpol-trace";
/// The resource that a Role names to let somebody read a namespace's drops. No such objects exist: RBAC doesn't mind.
pub const GROUP: &str = "netpol-trace.io";
pub const RESOURCE: &str = "drops";
/// An answer is good for so long.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const ANSWERS: usize = 4096;
/// Tokens of those who may get a path that are remembered: few scrape.
const TOKENS: usize = 64;
/// Tokens that are not remembered cost the API server a question each, whoever sends them: so often at most, and so many at once.
const STRANGERS: (Duration, u32) = (Duration::from_millis(200), 20);
/// How long one of them waits for its turn.
const TURN: Duration = Duration::from_secs(1);
/// For an answer about a path.
const ANSWERED_IN: Duration = Duration::from_secs(10);

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
    #[error("too many unknown tokens: try again later")]
    Busy,
}

/// Asks the API server.
pub struct Reviewer {
    access: Access,
    /// The namespace of the agents: who may read their logs sees everything.
    agents: String,
    client: OnceCell<Client>,
    answers: Mutex<HashMap<(String, String), (bool, Instant)>>,
    /// When a token was last good for a path.
    tokens: Mutex<HashMap<(String, &'static str), Instant>>,
    strangers: Budget,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").field("agents", &self.agents).finish_non_exhaustive()
    }
}

impl Reviewer {
    pub fn new(access: Access, agents: String) -> Reviewer {
        Reviewer {
            access,
            agents,
            client: OnceCell::new(),
            answers: Mutex::default(),
            tokens: Mutex::default(),
            strangers: Budget::new(STRANGERS.0, STRANGERS.1),
        }
    }

    async fn client(&self) -> Result<&Client, ReviewError> {
        let connect = || async { self.access.connect().await };
        self.client.get_or_try_init(connect).await.map_err(|error| ReviewError::Server(error.to_string()))
    }

    /// Whose token this is, which must be made for netpol-trace.
    pub async fn user(&self, token: &str) -> Result<User, ReviewError> {
        let status = self.review(token, Some(AUDIENCE)).await?;
        let for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        // A server that knows no audiences says yes to any token: that is not enough.
        match status.user.filter(|_| status.authenticated == Some(true) && for_us) {
            Some(info) => Ok(User { info }),
            None => Err(ReviewError::Token(status.error.unwrap_or_else(|| {
                format!("ask for one with `kubectl create token SERVICEACCOUNT --audience {AUDIENCE}`")
            }))),
        }
    }

    /// Without an audience: that of the API server itself.
    async fn review(&self, token: &str, audience: Option<&str>) -> Result<TokenReviewStatus, ReviewError> {
        let audiences = audience.map(|audience| vec![audience.to_owned()]);
        let spec = TokenReviewSpec { token: token.to_owned(), audiences };
        let asked = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client().await?.clone());
        let answer = reviews.create(&PostParams::default(), &asked).await.map_err(server)?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Whether the owner of a token may get a path that is no object's, such as `/metrics`. The token may be one for the API
    /// server itself too: scrapers have those. Yes is good for half a minute.
    pub async fn may_get(&self, token: &str, path: &'static str) -> Result<bool, ReviewError> {
        let key = (token.to_owned(), path);
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if known.is_some_and(|at| at.elapsed() < GOOD_FOR) {
            return Ok(true);
        }
        // Strangers can't use up the turn of one who was let in before.
        if known.is_none() && !self.strangers.take(TURN).await {
            return Err(ReviewError::Busy);
        }
        let answer = tokio::time::timeout(ANSWERED_IN, self.ask_may_get(token, path)).await;
        let may = answer.map_err(|_| ReviewError::Server(format!("no answer in {} s", ANSWERED_IN.as_secs())))?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        match &may {
            Ok(true) => {
                if tokens.len() >= TOKENS && !tokens.contains_key(&key) {
                    tokens.clear();
                }
                tokens.insert(key, Instant::now());
            }
            Ok(false) | Err(ReviewError::Token(_)) => drop(tokens.remove(&key)),
            Err(_) => {}
        }
        may
    }

    async fn ask_may_get(&self, token: &str, path: &str) -> Result<bool, ReviewError> {
        let user = match self.user(token).await {
            Err(ReviewError::Token(why)) => {
                let status = self.review(token, None).await?;
                let info = status.user.filter(|_| status.authenticated == Some(true));
                User { info: info.ok_or(ReviewError::Token(why))? }
            }
            user => user?,
        };
        let path = NonResourceAttributes { path: Some(path.to_owned()), verb: Some("get".to_owned()) };
        let what = SubjectAccessReviewSpec { non_resource_attributes: Some(path), ..Default::default() };
        self.may(&user, what).await
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
        self.may(user, object(log)).await
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
        let may = self.may(user, object(drops)).await?;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS {
            answers.clear();
        }
        answers.insert(key, (may, Instant::now()));
        Ok(may)
    }

    /// `what` without the user.
    async fn may(&self, user: &User, what: SubjectAccessReviewSpec) -> Result<bool, ReviewError> {
        let UserInfo { username, groups, uid, extra } = user.info.clone();
        let spec = SubjectAccessReviewSpec { user: username, groups, uid, extra, ..what };
        let asked = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client().await?.clone());
        let answer = reviews.create(&PostParams::default(), &asked).await.map_err(server)?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

fn object(attributes: ResourceAttributes) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SubjectAccessReviewSpec::default() }
}

fn server(error: kube::Error) -> ReviewError {
    ReviewError::Server(error.to_string())
}
