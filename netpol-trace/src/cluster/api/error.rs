//! Failed requests to the API server, with messages that name the remedy.

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
    /// The server does not accept the credentials: they are expired, or of another cluster.
    Unauthorized,
    /// The server no longer has the version from which the watch would continue (410).
    Expired,
    /// The server has no such object or resource.
    NotFound,
    /// The server refused the request.
    Refused,
    /// No response, or one that is not the API's.
    Unreachable,
}

/// A request in the terms of RBAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiRequest<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    /// All RBAC verbs that the agent uses on the resource.
    pub verbs: &'a [&'a str],
}

impl ApiError {
    pub(super) fn new(kind: ApiErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into() }
    }

    pub(super) fn of(error: &kube::Error, request: ApiRequest<'_>) -> ApiError {
        match error {
            kube::Error::Api(status) => ApiError::of_status(status, request),
            error => {
                let message = format!("{} {}: {}", request.verb, request.resource, shortened(&plain(error)));
                ApiError::new(ApiErrorKind::Unreachable, message)
            }
        }
    }

    pub(super) fn of_status(status: &Status, request: ApiRequest<'_>) -> ApiError {
        let ApiRequest { verb, group, resource, verbs } = request;
        let reason = shortened(&status.message);
        match status.code {
            403 => {
                let verbs = verbs.join(", ");
                let rule = format!("{{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verbs}]}}");
                ApiError::new(
                    ApiErrorKind::Forbidden,
                    format!(
                        "may not {verb} {resource}; add to the account's ClusterRole: {rule} (the server says: {reason})"
                    ),
                )
            }
            401 => ApiError::new(
                ApiErrorKind::Unauthorized,
                format!(
                    "{verb} {resource}: the server does not accept the credentials: they are expired, or of another cluster ({reason})"
                ),
            ),
            410 => ApiError::new(ApiErrorKind::Expired, format!("{verb} {resource}: {reason}")),
            404 => ApiError::new(ApiErrorKind::NotFound, format!("{verb} {resource}: {reason}")),
            code @ 400..500 if code != 429 && code != 408 => {
                ApiError::new(ApiErrorKind::Refused, format!("{verb} {resource}: {reason}"))
            }
            code => ApiError::new(ApiErrorKind::Unreachable, format!("{verb} {resource}: {code} {reason}")),
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> ApiError {
        ApiError::new(ApiErrorKind::Unreachable, shortened(&error.to_string()))
    }
}

/// The error without the client's names for its own layers.
fn plain(error: &kube::Error) -> String {
    match error {
        kube::Error::Service(cause) => chain(&**cause),
        kube::Error::HyperError(cause) => chain(cause),
        kube::Error::ReadEvents(cause) => chain(cause),
        error => chain(error),
    }
}

/// Cuts the message: a proxy may respond with a whole HTML page.
fn shortened(text: &str) -> String {
    const MOST: usize = 500;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
