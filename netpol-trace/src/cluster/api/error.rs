//! What can go wrong between agent and API server, in words that say what to do.

use kube::core::Status;

use super::connect::{AccessError, chain};

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ApiErrorKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiErrorKind {
    /// The account lacks a right.
    Forbidden,
    /// The server doesn't know the credentials: expired, or another cluster's.
    Unauthorized,
    /// What was listed is too old to go on from.
    Expired,
    /// The server has no such object or resource.
    NotFound,
    /// The server understood, and refused.
    Refused,
    /// No answer, or none that is one.
    Unreachable,
}

/// What was asked for, as RBAC calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiRequest<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    /// All verbs that are used on the resource.
    pub verbs: &'a [&'a str],
}

impl ApiError {
    pub(super) fn new(kind: ApiErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into() }
    }

    pub(super) fn of(error: &kube::Error, asked: ApiRequest<'_>) -> ApiError {
        match error {
            kube::Error::Api(status) => ApiError::of_status(status, asked),
            error => {
                let message = format!("{} {}: {}", asked.verb, asked.resource, shortened(&plain(error)));
                ApiError::new(ApiErrorKind::Unreachable, message)
            }
        }
    }

    pub(super) fn of_status(status: &Status, asked: ApiRequest<'_>) -> ApiError {
        let ApiRequest { verb, group, resource, verbs } = asked;
        let said = shortened(&status.message);
        match status.code {
            403 => {
                let verbs = verbs.join(", ");
                let rule = format!("{{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verbs}]}}");
                ApiError::new(
                    ApiErrorKind::Forbidden,
                    format!(
                        "may not {verb} {resource}; add to the account's ClusterRole: {rule} (the server says: {said})"
                    ),
                )
            }
            401 => ApiError::new(
                ApiErrorKind::Unauthorized,
                format!(
                    "{verb} {resource}: the server does not accept the credentials: expired, or of another cluster ({said})"
                ),
            ),
            410 => ApiError::new(ApiErrorKind::Expired, format!("{verb} {resource}: {said}")),
            404 => ApiError::new(ApiErrorKind::NotFound, format!("{verb} {resource}: {said}")),
            code @ 400..500 if code != 429 && code != 408 => {
                ApiError::new(ApiErrorKind::Refused, format!("{verb} {resource}: {said}"))
            }
            code => ApiError::new(ApiErrorKind::Unreachable, format!("{verb} {resource}: {code} {said}")),
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> ApiError {
        ApiError::new(ApiErrorKind::Unreachable, shortened(&error.to_string()))
    }
}

/// Without the client's own names for its layers.
fn plain(error: &kube::Error) -> String {
    match error {
        kube::Error::Service(cause) => chain(&**cause),
        kube::Error::HyperError(cause) => chain(cause),
        kube::Error::ReadEvents(cause) => chain(cause),
        error => chain(error),
    }
}

/// Servers and proxies can answer with pages.
fn shortened(text: &str) -> String {
    const MOST: usize = 500;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
