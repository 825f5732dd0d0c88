//! Identifies the callers of the agent's listeners and what they may read: TokenReview and SubjectAccessReview.
//!
//! Anybody who reaches a listener makes the agent send requests to the API server, so every request has a budget: TokenReviews
//! of unknown tokens share one, and each user name has one for all its other requests. Results are kept per token
//! (`sessions.rs`).

mod sessions;
#[cfg(test)]
pub(crate) mod tests;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::api::Access;
use super::budget::RequestBudget;
use sessions::{Question, Session, SessionKey, SessionState, Sessions};

/// The audience of tokens for the agents. Every other server refuses such a token.
pub const AUDIENCE: &str = "netpol-trace";
/// The resource that a Role names so that its subjects may read a namespace's drops. No such objects exist, and RBAC does not
/// need them.
pub const GROUP: &str = "netpol-trace.io";
pub const RESOURCE: &str = "drops";
/// The service account whose token a namespace's developers use. It may read the drops of its namespace and nothing else.
pub const READER: &str = "netpol-trace-reader";
/// Rate and burst of TokenReviews for unknown tokens of all senders together.
const UNKNOWN_TOKENS: (Duration, u32) = (Duration::from_millis(200), 20);
/// The longest wait for a budget.
const BUDGET_WAIT: Duration = Duration::from_secs(1);
/// Timeout of one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// While the API server does not respond, a scraper that it allowed this recently stays allowed: the agent's metrics are needed
/// most during an outage of the API server.
const LET_IN_FOR: Duration = Duration::from_secs(900);
/// Such a scraper waits no longer than this for the API server: Prometheus gives up after 10 s.
const LET_IN_PATIENCE: Duration = Duration::from_secs(3);
/// Rights that [`READER`] must not have: verb, resource, subresource. Everybody who may request its tokens has its rights.
/// The resources are namespaced, so bindings in the namespace and in the whole cluster both count.
const RISKS: [(&str, &str, &str); 4] = [
    ("get", "secrets", ""),
    ("create", "pods", ""),
    ("create", "pods", "exec"),
    ("create", "serviceaccounts", "token"),
];

/// The owner of a token that the API server accepted, as one TokenReview described them: user name, uid, groups and extra.
#[derive(Debug, Clone)]
pub struct User(Arc<Session>);

impl User {
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Whether a later TokenReview described the same user, groups included.
    pub fn is_same(&self, later: &User) -> bool {
        self.0.info() == later.0.info()
    }

    /// The namespace whose [`READER`] this is.
    fn reader_of(&self) -> Option<&str> {
        self.name().strip_prefix("system:serviceaccount:")?.strip_suffix(READER)?.strip_suffix(':')
    }
}

/// Why a review has no result.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("netpol-trace does not accept the token: {0}")]
    Token(String),
    #[error("the agent's request to the API server failed: {0}")]
    Server(String),
    #[error("too many requests to the API server: try again later")]
    Busy,
}

/// The audiences that a token may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// For netpol-trace.
    Own,
    /// For netpol-trace, or for the API server: scrapers have such tokens.
    OwnOrServer,
}

impl Audience {
    /// How long results are valid. A scraper comes twice a minute to each agent: with 30 s a thousand agents would send a hundred
    /// requests a second to the API server.
    fn valid_for(self) -> Duration {
        match self {
            Audience::Own => Duration::from_secs(30),
            Audience::OwnOrServer => Duration::from_secs(300),
        }
    }
}

/// Reviews who callers are and what they may read.
pub struct Reviewer {
    access: Access,
    /// The namespace of the agents. Everybody who may read the logs there may see every record.
    agents: String,
    client: OnceCell<Client>,
    sessions: Sessions,
    unknown_tokens: RequestBudget,
    /// What happens to callers while the API server does not respond, for the log.
    consequence: &'static str,
    /// True from a failed request to the next response: each is logged once.
    failing: AtomicBool,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").field("agents", &self.agents).finish_non_exhaustive()
    }
}

impl Reviewer {
    pub fn new(access: Access, agents: String, consequence: &'static str) -> Reviewer {
        Reviewer {
            access,
            agents,
            client: OnceCell::new(),
            sessions: Sessions::default(),
            unknown_tokens: RequestBudget::new(UNKNOWN_TOKENS.0, UNKNOWN_TOKENS.1),
            consequence,
            failing: AtomicBool::new(false),
        }
    }

    async fn client(&self) -> Result<&Client, ReviewError> {
        let connect = || async { self.access.connect().await };
        self.client.get_or_try_init(connect).await.map_err(|error| ReviewError::Server(error.to_string()))
    }

    /// Sends one request to the API server. Only its own responses end an outage; a cached result or an empty budget does not.
    async fn send<T>(&self, question: &T) -> Result<T, ReviewError>
    where
        T: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        let answer = match self.client().await {
            Ok(client) => with_timeout(Api::<T>::all(client.clone()).create(&PostParams::default(), question)).await,
            Err(error) => Err(error),
        };
        if self.failing.swap(answer.is_err(), Ordering::Relaxed) != answer.is_err() {
            match &answer {
                Err(error) => tracing::warn!(%error, "{}", self.consequence),
                Ok(_) => tracing::info!("the API server responds again to reviews of callers"),
            }
        }
        answer
    }

    /// The owner of a token, which must be made for netpol-trace.
    ///
    /// # Errors
    /// The token is not accepted, or the request to the API server was not sent or failed.
    pub async fn user(&self, token: &str) -> Result<User, ReviewError> {
        self.session(token, Audience::Own).await
    }

    async fn session(&self, token: &str, audience: Audience) -> Result<User, ReviewError> {
        let key = SessionKey::of(token, audience);
        let budget = match self.sessions.find(&key, Instant::now(), audience.valid_for()) {
            SessionState::Fresh(session) => return Ok(User(session)),
            SessionState::Refused => {
                return Err(ReviewError::Token("the API server refused it a moment ago".to_owned()));
            }
            // Unknown tokens do not use up the budget of a known one.
            SessionState::Stale(session) => session.wait_for_budget(BUDGET_WAIT).await,
            SessionState::Unknown => self.unknown_tokens.take(BUDGET_WAIT).await,
        };
        if !budget {
            return Err(ReviewError::Busy);
        }
        match self.reviewed(token, audience).await {
            Ok(info) => Ok(User(self.sessions.admit(key, info, Instant::now()))),
            Err(error) => {
                if matches!(error, ReviewError::Token(_)) {
                    self.sessions.refuse(key, Instant::now());
                }
                Err(error)
            }
        }
    }

    /// The API server's description of a token's owner.
    async fn reviewed(&self, token: &str, audience: Audience) -> Result<UserInfo, ReviewError> {
        let status = self.review(token, Some(AUDIENCE)).await?;
        // A server without audiences accepts any token, so `authenticated` alone is not enough.
        let is_own = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        if let Some(info) = status.user.filter(|_| status.authenticated == Some(true) && is_own) {
            return Ok(info);
        }
        if audience == Audience::OwnOrServer {
            let status = self.review(token, None).await?;
            if let Some(info) = status.user.filter(|_| status.authenticated == Some(true)) {
                return Ok(info);
            }
        }
        Err(ReviewError::Token(
            status.error.unwrap_or_else(|| {
                format!("make one with `kubectl create token SERVICEACCOUNT --audience {AUDIENCE}`")
            }),
        ))
    }

    /// Without `audience` the token must be one for the API server itself.
    async fn review(&self, token: &str, audience: Option<&str>) -> Result<TokenReviewStatus, ReviewError> {
        let audiences = audience.map(|audience| vec![audience.to_owned()]);
        let spec = TokenReviewSpec { token: token.to_owned(), audiences };
        let asked = TokenReview { spec, ..TokenReview::default() };
        Ok(self.send(&asked).await?.status.unwrap_or_default())
    }

    /// Whether the owner of a token may get a non-resource path such as `/metrics`. The token may also be one for the API server
    /// itself.
    ///
    /// # Errors
    /// The token is not accepted, or the request to the API server was not sent or failed.
    pub async fn may_get(&self, token: &str, path: &'static str) -> Result<bool, ReviewError> {
        let question = Question::Path(path);
        let ask = async {
            let user = self.session(token, Audience::OwnOrServer).await?;
            self.may(&user, question.clone()).await
        };
        let key = SessionKey::of(token, Audience::OwnOrServer);
        let let_in = match self.sessions.find(&key, Instant::now(), LET_IN_FOR) {
            SessionState::Fresh(session) | SessionState::Stale(session) => {
                session.answer(&question, Instant::now(), LET_IN_FOR)
            }
            SessionState::Refused | SessionState::Unknown => None,
        };
        if let_in != Some(true) {
            return ask.await;
        }
        match tokio::time::timeout(LET_IN_PATIENCE, ask).await {
            Err(_) | Ok(Err(ReviewError::Server(_))) => Ok(true),
            Ok(answer) => answer,
        }
    }

    /// Whether the user may see every record, that is may read the agents' logs.
    ///
    /// # Errors
    /// The request to the API server was not sent or failed.
    pub async fn may_read_all(&self, user: &User) -> Result<bool, ReviewError> {
        self.may(user, Question::Logs).await
    }

    /// Whether the user may see the drops of a namespace.
    ///
    /// # Errors
    /// The request to the API server was not sent or failed.
    pub async fn may_read(&self, user: &User, namespace: &str) -> Result<bool, ReviewError> {
        self.may(user, Question::Drops(namespace.to_owned())).await
    }

    /// A right that a namespace's [`READER`] has and must not have, such as `get secrets`. `None` for other users.
    ///
    /// # Errors
    /// The request to the API server was not sent or failed.
    pub async fn risk(&self, user: &User) -> Result<Option<String>, ReviewError> {
        if user.reader_of().is_none() {
            return Ok(None);
        }
        for (number, (verb, resource, subresource)) in RISKS.iter().enumerate() {
            if self.may(user, Question::Risk(number)).await? {
                let slash = if subresource.is_empty() { "" } else { "/" };
                return Ok(Some(format!("{verb} {resource}{slash}{subresource}")));
            }
        }
        Ok(None)
    }

    async fn may(&self, user: &User, question: Question) -> Result<bool, ReviewError> {
        let audience = if let Question::Path(_) = question { Audience::OwnOrServer } else { Audience::Own };
        if let Some(answer) = user.0.answer(&question, Instant::now(), audience.valid_for()) {
            return Ok(answer);
        }
        if !user.0.wait_for_budget(REQUEST_TIMEOUT).await {
            return Err(ReviewError::Busy);
        }
        let UserInfo { username, groups, uid, extra } = user.0.info().clone();
        let spec = SubjectAccessReviewSpec { user: username, groups, uid, extra, ..self.attributes(user, &question) };
        let asked = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let may = self.send(&asked).await?.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        user.0.keep(question, may, Instant::now());
        Ok(may)
    }

    /// A question in the API's form, without the user.
    fn attributes(&self, user: &User, question: &Question) -> SubjectAccessReviewSpec {
        let (namespace, verb, group, resource, subresource) = match question {
            Question::Path(path) => {
                let path = NonResourceAttributes { path: Some((*path).to_owned()), verb: Some("get".to_owned()) };
                return SubjectAccessReviewSpec { non_resource_attributes: Some(path), ..Default::default() };
            }
            Question::Drops(namespace) => (namespace.as_str(), "get", GROUP, RESOURCE, ""),
            Question::Logs => (self.agents.as_str(), "get", "", "pods", "log"),
            Question::Risk(number) => {
                let (verb, resource, subresource) = RISKS.get(*number).copied().unwrap_or_default();
                (user.reader_of().unwrap_or_default(), verb, "", resource, subresource)
            }
        };
        let attributes = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()),
            ..ResourceAttributes::default()
        };
        SubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() }
    }
}

/// Waits for the response, at most [`REQUEST_TIMEOUT`].
async fn with_timeout<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ReviewError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(ReviewError::Server(format!(
            "{}; the agent's account needs {{apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}} \
             and {{apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}}",
            status.message
        ))),
        Ok(Err(error)) => Err(ReviewError::Server(error.to_string())),
        Err(_) => Err(ReviewError::Server(format!("no response in {} s", REQUEST_TIMEOUT.as_secs()))),
    }
}
