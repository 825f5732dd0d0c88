//! Identifies the callers of the agent's listeners and what they may read: TokenReview and SubjectAccessReview.
//!
//! Whoever reaches a listener makes the agent ask the API server, so every question has a budget: TokenReviews of unknown
//! tokens share one, and each user name has one for all its other questions. Answers are kept per token (`sessions.rs`).

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
use super::budget::Budget;
use sessions::{Question, Session, SessionKey, SessionState, Sessions};

/// The audience that tokens for the agents are made for; such a token is refused everywhere else.
pub const AUDIENCE: &str = "netpol-trace";
/// The resource that a Role names to let somebody read a namespace's drops. No such objects exist; RBAC does not need them.
pub const GROUP: &str = "netpol-trace.io";
pub const RESOURCE: &str = "drops";
/// The service account that a namespace's developers ask as. It may read the drops of its namespace and nothing else.
pub const READER: &str = "netpol-trace-reader";
/// Rate and burst of TokenReviews for tokens that are not known, whoever sends them.
const UNKNOWN_TOKENS: (Duration, u32) = (Duration::from_millis(200), 20);
/// The longest wait for a turn in a budget.
const TURN: Duration = Duration::from_secs(1);
/// The API server must answer one question within this time.
const ANSWERED_IN: Duration = Duration::from_secs(10);
/// While the API server does not answer, a scraper that it let in this recently is let in still: an outage of the API server
/// is when the agent's metrics are needed.
const LET_IN_FOR: Duration = Duration::from_secs(900);
/// Such a scraper does not wait longer for the API server: Prometheus gives up after 10 s.
const LET_IN_PATIENCE: Duration = Duration::from_secs(3);
/// Rights that [`READER`] must not have: verb, resource, subresource. Whoever may ask for its tokens has its rights.
/// Namespaced, so bindings in the namespace and in the whole cluster both count.
const RISKS: [(&str, &str, &str); 4] = [
    ("get", "secrets", ""),
    ("create", "pods", ""),
    ("create", "pods", "exec"),
    ("create", "serviceaccounts", "token"),
];

/// Somebody with a token that the API server knows, as one TokenReview described them: user name, uid, groups and extra.
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

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("the token is not good for netpol-trace: {0}")]
    Token(String),
    #[error("the agent can't ask the API server: {0}")]
    Server(String),
    #[error("too many questions to the API server: try again later")]
    Busy,
}

/// For which audiences a token may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// For netpol-trace.
    Own,
    /// For netpol-trace, or for the API server: scrapers have such tokens.
    OwnOrServer,
}

impl Audience {
    /// How long answers are good. A scraper comes twice a minute to each agent: were its answers good for 30 s only, a
    /// thousand agents would ask the API server a hundred times a second.
    fn good_for(self) -> Duration {
        match self {
            Audience::Own => Duration::from_secs(30),
            Audience::OwnOrServer => Duration::from_secs(300),
        }
    }
}

/// Asks the API server who callers are and what they may read.
pub struct Reviewer {
    access: Access,
    /// The namespace of the agents: whoever may read the logs there may see every record.
    agents: String,
    client: OnceCell<Client>,
    sessions: Sessions,
    unknown_tokens: Budget,
    /// What follows for callers while the API server does not answer, for the log.
    consequence: &'static str,
    /// True from a question without an answer to the next answer: the log reports both once.
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
            unknown_tokens: Budget::new(UNKNOWN_TOKENS.0, UNKNOWN_TOKENS.1),
            consequence,
            failing: AtomicBool::new(false),
        }
    }

    async fn client(&self) -> Result<&Client, ReviewError> {
        let connect = || async { self.access.connect().await };
        self.client.get_or_try_init(connect).await.map_err(|error| ReviewError::Server(error.to_string()))
    }

    /// The API server's answer to one question. Only here does the agent learn whether the API server answers: what a cache or
    /// a budget replies says nothing about it.
    async fn ask<T>(&self, question: &T) -> Result<T, ReviewError>
    where
        T: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        let answer = match self.client().await {
            Ok(client) => answered(Api::<T>::all(client.clone()).create(&PostParams::default(), question)).await,
            Err(error) => Err(error),
        };
        if self.failing.swap(answer.is_err(), Ordering::Relaxed) != answer.is_err() {
            match &answer {
                Err(error) => tracing::warn!(%error, "{}", self.consequence),
                Ok(_) => tracing::info!("the API server answers questions about callers again"),
            }
        }
        answer
    }

    /// The owner of a token, which must be made for netpol-trace.
    ///
    /// # Errors
    /// The token is not good, or the API server was not asked or did not answer.
    pub async fn user(&self, token: &str) -> Result<User, ReviewError> {
        self.session(token, Audience::Own).await
    }

    async fn session(&self, token: &str, audience: Audience) -> Result<User, ReviewError> {
        let key = SessionKey::of(token, audience);
        let budget = match self.sessions.find(&key, Instant::now(), audience.good_for()) {
            SessionState::Fresh(session) => return Ok(User(session)),
            SessionState::Refused => {
                return Err(ReviewError::Token("the API server refused it a moment ago".to_owned()));
            }
            // Unknown tokens can't use up the turn of a known one.
            SessionState::Stale(session) => session.take_turn(TURN).await,
            SessionState::Unknown => self.unknown_tokens.take(TURN).await,
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
        // A server that knows no audiences accepts any token: that is not enough.
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
        Err(ReviewError::Token(status.error.unwrap_or_else(|| {
            format!("ask for one with `kubectl create token SERVICEACCOUNT --audience {AUDIENCE}`")
        })))
    }

    /// Without an audience: that of the API server itself.
    async fn review(&self, token: &str, audience: Option<&str>) -> Result<TokenReviewStatus, ReviewError> {
        let audiences = audience.map(|audience| vec![audience.to_owned()]);
        let spec = TokenReviewSpec { token: token.to_owned(), audiences };
        let asked = TokenReview { spec, ..TokenReview::default() };
        Ok(self.ask(&asked).await?.status.unwrap_or_default())
    }

    /// Whether the owner of a token may get a path that is no object's, such as `/metrics`. The token may be one for the API
    /// server itself too.
    ///
    /// # Errors
    /// The token is not good, or the API server was not asked or did not answer.
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

    /// Whether they may see every record: those who may read the agents' logs can do so anyway.
    ///
    /// # Errors
    /// The API server was not asked or did not answer.
    pub async fn may_read_all(&self, user: &User) -> Result<bool, ReviewError> {
        self.may(user, Question::Logs).await
    }

    /// Whether they may see the drops of a namespace.
    ///
    /// # Errors
    /// The API server was not asked or did not answer.
    pub async fn may_read(&self, user: &User, namespace: &str) -> Result<bool, ReviewError> {
        self.may(user, Question::Drops(namespace.to_owned())).await
    }

    /// A right that a namespace's [`READER`] has and must not have, such as `get secrets`; for others `None`.
    ///
    /// # Errors
    /// The API server was not asked or did not answer.
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
        if let Some(answer) = user.0.answer(&question, Instant::now(), audience.good_for()) {
            return Ok(answer);
        }
        if !user.0.take_turn(ANSWERED_IN).await {
            return Err(ReviewError::Busy);
        }
        let UserInfo { username, groups, uid, extra } = user.0.info().clone();
        let spec = SubjectAccessReviewSpec { user: username, groups, uid, extra, ..self.attributes(user, &question) };
        let asked = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let may = self.ask(&asked).await?.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        user.0.keep(question, may, Instant::now());
        Ok(may)
    }

    /// A question as the API server takes it, without the user.
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

/// Waits for the API server's answer, but not for ever.
async fn answered<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ReviewError> {
    match tokio::time::timeout(ANSWERED_IN, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(ReviewError::Server(format!(
            "{}; the agent's account needs {{apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}} \
             and {{apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}}",
            status.message
        ))),
        Ok(Err(error)) => Err(ReviewError::Server(error.to_string())),
        Err(_) => Err(ReviewError::Server(format!("no answer in {} s", ANSWERED_IN.as_secs()))),
    }
}
