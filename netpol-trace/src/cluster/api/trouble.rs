//! What can go wrong between agent and API server, in words that say what to do.

use kube::core::Status;

use super::connect::{AccessError, chain};

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Trouble {
    pub kind: TroubleKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
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
pub struct Asked<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    /// All verbs that are used on the resource.
    pub verbs: &'a [&'a str],
}

impl Trouble {
    pub(super) fn new(kind: TroubleKind, message: impl Into<String>) -> Trouble {
        Trouble { kind, message: message.into() }
    }

    pub(super) fn of(error: &kube::Error, asked: Asked<'_>) -> Trouble {
        match error {
            kube::Error::Api(status) => Trouble::of_status(status, asked),
            error => {
                let message = format!("{} {}: {}", asked.verb, asked.resource, shortened(&plain(error)));
                Trouble::new(TroubleKind::Unreachable, message)
            }
        }
    }

    pub(super) fn of_status(status: &Status, asked: Asked<'_>) -> Trouble {
        let Asked { verb, group, resource, verbs } = asked;
        let said = shortened(&status.message);
        match status.code {
            403 => {
                let verbs = verbs.join(", ");
                let rule = format!("{{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verbs}]}}");
                Trouble::new(
                    TroubleKind::Forbidden,
                    format!(
                        "may not {verb} {resource}; add to the account's ClusterRole: {rule} (the server says: {said})"
                    ),
                )
            }
            401 => Trouble::new(
                TroubleKind::Unauthorized,
                format!(
                    "{verb} {resource}: the server does not accept the credentials: expired, or of another cluster ({said})"
                ),
            ),
            410 => Trouble::new(TroubleKind::Expired, format!("{verb} {resource}: {said}")),
            404 => Trouble::new(TroubleKind::NotFound, format!("{verb} {resource}: {said}")),
            code @ 400..500 if code != 429 && code != 408 => {
                Trouble::new(TroubleKind::Refused, format!("{verb} {resource}: {said}"))
            }
            code => Trouble::new(TroubleKind::Unreachable, format!("{verb} {resource}: {code} {said}")),
        }
    }
}

impl From<AccessError> for Trouble {
    fn from(error: AccessError) -> Trouble {
        Trouble::new(TroubleKind::Unreachable, shortened(&error.to_string()))
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
