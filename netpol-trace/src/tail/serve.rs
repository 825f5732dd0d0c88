//! The agent's `tail` listener (`--tail-listen`): its history, and what comes, for who may see it.
//!
//! `GET /v1/records?namespace=NS&since=TIME&follow=true` with a token that the API server vouches for. Nothing is answered
//! without one: on a hostNetwork node the loopback belongs to everybody there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::cluster::access_review::{GROUP, RESOURCE, ReviewError, Reviewer, User};
use crate::history::{self, Follower};
use crate::record::encode::{self, Format};
use crate::record::{Record, restrict};
use crate::storage::{Folder, Readers};
use crate::tail::view;

/// From when the history can answer.
pub const REACHES_BACK_TO: &str = "x-netpol-trace-reaches-back-to";
/// Readers at once.
const READERS: usize = 16;
/// The history is looked at again this often: its files are written by another thread.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A reader who stays is asked again who they are.
const REVIEW_AGAIN: Duration = Duration::from_secs(60);
/// A longer token is none.
const TOKEN_AT_MOST: usize = 16 * 1024;
/// Namespaces of one request.
const NAMESPACES: usize = 100;
/// Batches on their way to a reader.
const BATCHES: usize = 8;

#[derive(Debug, Clone)]
pub struct Serving {
    history: PathBuf,
    reviewer: Arc<Reviewer>,
    readers: Arc<Semaphore>,
}

pub fn router(history: PathBuf, reviewer: Reviewer) -> Router {
    let serving = Serving { history, reviewer: Arc::new(reviewer), readers: Arc::new(Semaphore::new(READERS)) };
    Router::new().route("/v1/records", get(records)).with_state(serving)
}

/// What a reader asks for.
#[derive(Debug, serde::Deserialize)]
struct Asked {
    /// Separated by commas; none: all of them.
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    since: Option<Timestamp>,
    #[serde(default)]
    follow: bool,
}

async fn records(State(serving): State<Serving>, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(token) = token.filter(|token| token.len() <= TOKEN_AT_MOST) else {
        return refuse(StatusCode::UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN");
    };
    let namespaces: Vec<String> = asked.namespace.split(',').filter(|ns| !ns.is_empty()).map(str::to_owned).collect();
    if namespaces.len() > NAMESPACES {
        return refuse(StatusCode::BAD_REQUEST, "too many namespaces in one request");
    }
    let user = match serving.admit(token, &namespaces).await {
        Ok(user) => user,
        Err(refusal) => return refusal,
    };
    let Ok(place) = serving.readers.clone().try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many readers: try again when one has gone");
    };
    tracing::info!(user = user.name(), namespaces = asked.namespace, "records are read over --tail-listen");
    let folder = match Folder::open(&serving.history, Readers::default()) {
        Ok(folder) => folder,
        Err(error) => {
            tracing::warn!(%error, "the history can't be read");
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent has no history: `sinks` in its status says why");
        }
    };
    let reaches = history::reaches_back_to(&folder).ok().flatten().map(|time| time.to_string());
    let (to_reader, lines) = mpsc::channel(BATCHES);
    serving.read(folder, user, token.to_owned(), namespaces, &asked, to_reader, place);
    let body = futures::stream::unfold(lines, async |mut lines| {
        let batch: Vec<u8> = lines.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(batch), lines))
    });
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/jsonl".to_owned()),
        (REACHES_BACK_TO, reaches.unwrap_or_default()),
    ];
    (headers, Body::from_stream(body)).into_response()
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

impl Serving {
    async fn admit(&self, token: &str, namespaces: &[String]) -> Result<User, Response> {
        let refused = |error: ReviewError| match error {
            ReviewError::Token(_) => refuse(StatusCode::UNAUTHORIZED, &error.to_string()),
            ReviewError::Server(_) | ReviewError::Busy => {
                tracing::warn!("--tail-listen: {error}");
                refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
            }
        };
        let user = self.reviewer.user(token).await.map_err(refused)?;
        if namespaces.is_empty() {
            if !self.reviewer.may_read_all(&user).await.map_err(refused)? {
                let why = "all namespaces are for who may get pods/log in the agent's namespace; name yours with -n";
                return Err(refuse(StatusCode::FORBIDDEN, why));
            }
            return Ok(user);
        }
        for namespace in namespaces {
            if !self.reviewer.may_read(&user, namespace).await.map_err(refused)? {
                let why = format!(
                    "{} may not read the drops of namespace {namespace}; a Role there needs \
                     {{apiGroups: [{GROUP}], resources: [{RESOURCE}], verbs: [get]}}",
                    user.name()
                );
                return Err(refuse(StatusCode::FORBIDDEN, &why));
            }
        }
        Ok(user)
    }

    /// Sends what the reader may see, until the end or their going, in a thread that may wait for the disk.
    #[expect(clippy::too_many_arguments, reason = "one caller")]
    fn read(
        &self,
        folder: Folder,
        user: User,
        token: String,
        namespaces: Vec<String>,
        asked: &Asked,
        to_reader: mpsc::Sender<Vec<u8>>,
        place: OwnedSemaphorePermit,
    ) {
        let (since, follow) = (asked.since, asked.follow);
        // Tells the thread to end.
        let over = Arc::new(AtomicBool::new(false));
        tokio::spawn(review_again(self.clone(), token, namespaces.clone(), to_reader.downgrade(), over.clone()));
        let opened_since = since.map(SystemTime::from);
        let mut follower = Follower::new(folder, opened_since);
        let reviewer = self.reviewer.clone();
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut view = View { user, namespaces, since, reviewer, handle, may: HashMap::new() };
            while !over.load(Ordering::Acquire) {
                let mut batch = Vec::new();
                let more = follower
                    .read(|lines| lines.split_inclusive(|b| *b == b'\n').for_each(|l| view.line(l, &mut batch)));
                if !batch.is_empty() && to_reader.blocking_send(batch).is_err() {
                    break;
                }
                match more {
                    Ok(true) => {}
                    Ok(false) if follow && !to_reader.is_closed() => std::thread::sleep(LOOK_AGAIN),
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the history can't be read");
                        break;
                    }
                }
            }
            over.store(true, Ordering::Release);
        });
    }
}

/// Ends a reader whose token has expired or who has lost the right.
async fn review_again(
    serving: Serving,
    token: String,
    namespaces: Vec<String>,
    reader: mpsc::WeakSender<Vec<u8>>,
    over: Arc<AtomicBool>,
) {
    loop {
        tokio::time::sleep(REVIEW_AGAIN).await;
        if reader.upgrade().is_none() {
            return;
        }
        if serving.admit(&token, &namespaces).await.is_err() {
            over.store(true, Ordering::Release);
            return;
        }
    }
}

/// One reader's view of the lines.
struct View {
    user: User,
    /// None: they see everything.
    namespaces: Vec<String>,
    since: Option<Timestamp>,
    reviewer: Arc<Reviewer>,
    handle: tokio::runtime::Handle,
    /// What was asked for this line.
    may: HashMap<String, bool>,
}

impl View {
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(seen) = view::read(line.trim_ascii_end()) else { return };
        if self.since.is_some_and(|since| seen.last_time.unwrap_or(seen.time) < since) {
            return;
        }
        if self.namespaces.is_empty() {
            out.extend_from_slice(line);
            return;
        }
        let of = |end: &view::End<'_>| {
            let pod = end.pod.as_ref().map(|pod| pod.namespace.to_string());
            pod.or_else(|| end.service.as_ref().map(|service| service.namespace.to_string()))
        };
        let mut theirs: Vec<String> = seen.ends().filter_map(of).collect();
        if &*seen.kind == "policy_change" {
            theirs.push(seen.namespace.to_string());
        }
        if &*seen.kind != "loss" && !theirs.iter().any(|ns| self.namespaces.contains(ns)) {
            return;
        }
        let Ok(record) = serde_json::from_slice::<Record>(line) else { return };
        self.may.clear();
        for namespace in theirs {
            // Only what was asked for is answered; of the other end, what they may see by themselves.
            let may = self.handle.block_on(self.reviewer.may_read(&self.user, &namespace)).unwrap_or(false);
            self.may.insert(namespace, may);
        }
        if let Some(record) = restrict::restricted(record, |ns| self.may.get(ns).copied().unwrap_or(false)) {
            let before = out.len();
            if encode::line(Format::Native, &record, out).is_err() {
                out.truncate(before);
            }
        }
    }
}
