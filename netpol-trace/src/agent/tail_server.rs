//! The `tail` listener (`--tail-listen`): the agent's history and new records, for callers who may read them.
//!
//! `GET /v1/records?namespace=NS&since=TIME&follow=true` needs a token that the API server knows: with hostNetwork every process of the node
//! reaches the loopback address.

mod reader;
mod slots;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::cluster::access_review::{GROUP, RESOURCE, ReviewError, Reviewer, User};
use crate::cluster::decode::meta::is_namespace_name;
use crate::history;
use crate::http::{self, Stalled};
use crate::storage::{Folder, Readers};
use reader::RecordStream;
use slots::{NoSlot, ReaderSlots};

/// Limit of namespaces in one request.
const NAMESPACES: usize = 100;
/// Batches in the queue to one reader.
const BATCHES: usize = 8;

#[derive(Debug, Clone)]
struct Serving {
    history: PathBuf,
    reviewer: Arc<Reviewer>,
    slots: Arc<ReaderSlots>,
}

pub fn router(history: PathBuf, reviewer: Reviewer) -> Router {
    let serving = Serving { history, reviewer: Arc::new(reviewer), slots: Arc::default() };
    Router::new().route("/v1/records", get(records)).with_state(serving)
}

/// The query of a request.
#[derive(Debug, serde::Deserialize)]
struct RecordsQuery {
    /// Namespaces, separated by commas; empty means all.
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    since: Option<Timestamp>,
    #[serde(default)]
    follow: bool,
}

async fn records(
    State(serving): State<Serving>,
    Extension(stalled): Extension<Stalled>,
    Query(query): Query<RecordsQuery>,
    headers: HeaderMap,
) -> Response {
    let Some(token) = http::bearer(&headers) else {
        return refuse(StatusCode::UNAUTHORIZED, http::TOKEN_NEEDED.trim_end());
    };
    let namespaces: Vec<String> = query.namespace.split(',').filter(|ns| !ns.is_empty()).map(str::to_owned).collect();
    if namespaces.len() > NAMESPACES {
        return refuse(StatusCode::BAD_REQUEST, "namespace: at most 100 names in one request");
    }
    // Such a name is no namespace's: the agent neither asks the API server for it nor logs it.
    if !namespaces.iter().all(|namespace| is_namespace_name(namespace)) {
        return refuse(StatusCode::BAD_REQUEST, "namespace: expected names of namespaces, separated by commas");
    }
    let user = match serving.admit(token, &namespaces).await {
        Ok(user) => user,
        Err(refusal) => return refusal.into_response(),
    };
    let slot = match serving.slots.take(user.name()) {
        Ok(slot) => slot,
        Err(full) => {
            let whose = match full {
                NoSlot::All => "the listener has",
                NoSlot::Users => "this user has",
            };
            let why = format!("{whose} too many readers: try again when one has ended");
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &why);
        }
    };
    tracing::info!(user = user.name(), namespaces = query.namespace, "records are read over --tail-listen");
    let folder = match Folder::open(&serving.history, Readers::default()) {
        Ok(folder) => folder,
        Err(error) => {
            tracing::warn!(%error, "the history cannot be read");
            return refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "the agent has no history: `sinks` in its status records has the reason",
            );
        }
    };
    let reaches = history::reaches_back_to(&folder).ok().flatten().map(|time| time.to_string());
    let (to_reader, lines) = mpsc::channel(BATCHES);
    let reading = RecordStream { user, namespaces, since: query.since, follow: query.follow, to_reader, slot, stalled };
    reading.start(serving, token.to_owned(), folder);
    let body = futures::stream::unfold(lines, async |mut lines| Some((lines.recv().await?, lines)));
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/jsonl".to_owned()),
        (crate::cluster::agents::REACHES_BACK_TO, reaches.unwrap_or_default()),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// The response to a caller who gets no records.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    Refusal(status, why.to_owned()).into_response()
}

impl Serving {
    /// Returns the owner of a token if they may read these namespaces; all namespaces if the list is empty.
    async fn admit(&self, token: &str, namespaces: &[String]) -> Result<User, Refusal> {
        self.review(token, namespaces).await.unwrap_or_else(|error| {
            let status = match error {
                ReviewError::Token(_) => StatusCode::UNAUTHORIZED,
                ReviewError::Server(_) => StatusCode::SERVICE_UNAVAILABLE,
                ReviewError::Busy => StatusCode::TOO_MANY_REQUESTS,
            };
            Err(Refusal(status, error.to_string()))
        })
    }

    async fn review(&self, token: &str, namespaces: &[String]) -> Result<Result<User, Refusal>, ReviewError> {
        let forbidden = |why: &str| Ok(Err(Refusal(StatusCode::FORBIDDEN, why.to_owned())));
        let user = self.reviewer.user(token).await?;
        if let Some(right) = self.reviewer.risk(&user).await? {
            return forbidden(&format!(
                "{} may {right}, and whoever can request its tokens could do the same. Remove the binding that grants it; \
                 this account needs {{apiGroups: [{GROUP}], resources: [{RESOURCE}], verbs: [get]}} only",
                user.name()
            ));
        }
        if namespaces.is_empty() && !self.reviewer.may_read_all(&user).await? {
            return forbidden(
                "all namespaces need the permission to get pods/log in the agent's namespace; select your namespace with -n",
            );
        }
        for namespace in namespaces {
            if !self.reviewer.may_read(&user, namespace).await? {
                return forbidden(&format!(
                    "{} may not read the drops of namespace {namespace}: add a Role there with \
                     {{apiGroups: [{GROUP}], resources: [{RESOURCE}], verbs: [get]}}",
                    user.name()
                ));
            }
        }
        Ok(Ok(user))
    }
}
