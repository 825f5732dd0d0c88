//! Lists one collection and watches it from there, until dropped.
//!
//! Uses kube's requests and not `kube_runtime::watcher`, which yields nothing when a broken watch is established again: its
//! next event is the next change of an object. The source would stay `stale` until then. Lists are streamed where the server
//! can (WatchList), else read in pages.

use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use tokio::time::timeout;

use super::super::decode::wire::WireObject;
use super::super::resource::{KindInfo, Resource};
use super::connect::{ApiConnection, Current};
use super::error::{ApiError, ApiErrorKind, ApiRequest};
use super::reflector::{Reflector, WatchUpdate};
use crate::backoff::{Backoff, random_below};

/// Objects in a page of a list.
pub(super) const PAGE: u32 = 500;
/// Watch events that are applied together.
const BURST: usize = 256;
/// A streamed list without any event for this long is abandoned, and the list is read in pages.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection that failed for this long may need other credentials, or another address.
const RENEW_AFTER: Duration = Duration::from_secs(60);
pub(super) const BACKOFF: Backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(30));
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A collection of the API: the objects of a kind that a list or watch returns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cluster) struct Collection {
    pub group: String,
    pub version: String,
    /// The name in URLs and RBAC rules.
    pub plural: String,
    /// Field selector.
    pub fields: Option<String>,
    /// The server sends only the objects' metadata.
    pub metadata_only: bool,
    /// The RBAC verbs that the agent uses on it.
    pub verbs: &'static [&'static str],
}

impl Collection {
    pub fn of(info: &KindInfo) -> Collection {
        let (group, version) = info.group_version();
        Collection { verbs: info.verbs, ..Collection::new(group, version, info.plural) }
    }

    pub fn new(group: &str, version: &str, plural: &str) -> Collection {
        Collection {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            fields: None,
            metadata_only: false,
            verbs: &["list", "watch"],
        }
    }

    pub fn url(&self, namespace: Option<&str>) -> String {
        let Collection { group, version, plural, .. } = self;
        let namespace = namespace.map(|name| format!("namespaces/{name}/")).unwrap_or_default();
        match group.as_str() {
            "" => format!("/api/{version}/{namespace}{plural}"),
            group => format!("/apis/{group}/{version}/{namespace}{plural}"),
        }
    }

    pub fn request<'a>(&'a self, verb: &'a str) -> ApiRequest<'a> {
        ApiRequest { verb, group: &self.group, resource: &self.plural, verbs: self.verbs }
    }

    /// One page of a list.
    pub async fn page<T>(&self, client: &kube::Client, params: &ListParams) -> Result<ObjectList<T>, ApiError>
    where
        T: Clone + serde::de::DeserializeOwned,
    {
        let request = Request::new(self.url(None));
        let request = if self.metadata_only { request.list_metadata(params) } else { request.list(params) };
        let api_error = |error: &kube::Error| ApiError::of(error, self.request("list"));
        let request = request.map_err(kube::Error::BuildRequest).map_err(|error| api_error(&error))?;
        let text = client.request_text(request).await.map_err(|error| api_error(&error))?;
        serde_json::from_str(&text).map_err(|error| api_error(&kube::Error::SerdeError(error)))
    }
}

/// Lists and watches `collection` until dropped or, with `may_end`, until the server no longer has it.
pub(in crate::cluster) async fn run<R: Resource>(
    connection: ApiConnection,
    collection: Collection,
    mut reflector: Reflector,
    may_end: bool,
) {
    let mut watch = Watch { collection, version: None, streaming: true };
    let mut backoff = BACKOFF;
    let mut last_good = Instant::now();
    loop {
        let begun = Instant::now();
        let current = match connection.current().await {
            Ok(current) => current,
            Err(error) => {
                reflector.failed(&error.into());
                backoff.wait().await;
                continue;
            }
        };
        let ended = watch.session::<R>(&current, &mut reflector).await;
        if reflector.synced() {
            last_good = Instant::now();
            backoff = BACKOFF;
        }
        match ended {
            // The server ends each watch after some minutes.
            Ok(()) if begun.elapsed() > FIRST_PAUSE => continue,
            Ok(()) => {}
            Err(error) if error.kind == ApiErrorKind::Expired => {
                tracing::debug!("{}: listing again: {error}", reflector.name());
                watch.version = None;
            }
            Err(error) => {
                if may_end && error.kind == ApiErrorKind::NotFound {
                    return reflector.end();
                }
                let worn = error.kind == ApiErrorKind::Unreachable && last_good.elapsed() > RENEW_AFTER;
                if error.kind == ApiErrorKind::Unauthorized || worn {
                    connection.renew(&current).await;
                }
                reflector.failed(&error);
            }
        }
        backoff.wait().await;
    }
}

/// Reads the whole list page by page, and returns its version.
pub(super) async fn list<R: Resource>(
    current: &Current,
    collection: &Collection,
    reflector: &mut Reflector,
) -> Result<Option<String>, ApiError> {
    reflector.begin();
    let fields = collection.fields.clone();
    let mut params = ListParams { field_selector: fields, limit: Some(PAGE), ..ListParams::default() };
    loop {
        let page: ObjectList<WireObject<R>> = collection.page(&current.client, &params).await?;
        reflector.listed(page.items);
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        if next.is_none() {
            reflector.complete();
            return Ok(page.metadata.resource_version);
        }
        params.continue_token = next;
    }
}

struct Watch {
    collection: Collection,
    /// The version from which the watch continues; `None` when a list is needed.
    version: Option<String>,
    /// The server has not refused a streamed list.
    streaming: bool,
}

impl Watch {
    /// Lists if needed, and watches until the connection ends. A watch that the server ends is no error.
    async fn session<R: Resource>(&mut self, current: &Current, reflector: &mut Reflector) -> Result<(), ApiError> {
        if self.version.is_none() && self.streaming && current.streaming {
            match self.follow::<R>(current, reflector).await {
                Err(error) if self.version.is_none() && error.kind == ApiErrorKind::Refused => {
                    tracing::debug!("{}: no streaming list: {error}", reflector.name());
                    self.streaming = false;
                }
                ended => return ended,
            }
        }
        if self.version.is_none() {
            self.version = list::<R>(current, &self.collection, reflector).await?;
        }
        self.follow::<R>(current, reflector).await
    }

    /// Watches from `version`, or streams the list first.
    async fn follow<R: Resource>(&mut self, current: &Current, reflector: &mut Reflector) -> Result<(), ApiError> {
        let collection = self.collection.clone();
        let mut listing = self.version.is_none();
        let params = WatchParams {
            field_selector: collection.fields.clone(),
            send_initial_events: listing,
            // Spreads the reconnections of agents that started together.
            timeout: Some(240 + random_below(60)),
            ..WatchParams::default()
        };
        let request = Request::new(collection.url(None));
        let from = self.version.as_deref().unwrap_or_default();
        let request = match collection.metadata_only {
            true => request.watch_metadata(&params, from),
            false => request.watch(&params, from),
        };
        let api_error = |error: &kube::Error| ApiError::of(error, collection.request("watch"));
        let request = request.map_err(kube::Error::BuildRequest).map_err(|error| api_error(&error))?;
        let events =
            current.client.request_events::<WireObject<R>>(request).await.map_err(|error| api_error(&error))?;
        let mut events = Box::pin(events.ready_chunks(BURST));
        match listing {
            true => reflector.begin(),
            false => reflector.connected(),
        }
        loop {
            let batch = match listing {
                true => timeout(LIST_TIMEOUT, events.next())
                    .await
                    .map_err(|_| ApiError::new(ApiErrorKind::Refused, "the server sent nothing of a streamed list"))?,
                false => events.next().await,
            };
            let Some(batch) = batch else { break };
            let (mut listed, mut changed) = (Vec::new(), Vec::new());
            let mut failed = None;
            for event in batch {
                match event {
                    Ok(WatchEvent::Added(item) | WatchEvent::Modified(item)) if listing => listed.push(item),
                    Ok(WatchEvent::Added(item)) => changed.push(self.upsert(item, true)),
                    Ok(WatchEvent::Modified(item)) => changed.push(self.upsert(item, false)),
                    Ok(WatchEvent::Deleted(item)) => {
                        self.version = Some(item.version.clone());
                        changed.push(WatchUpdate::Delete(item));
                    }
                    Ok(WatchEvent::Bookmark(bookmark)) => {
                        if !listing || bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") {
                            if listing {
                                reflector.listed(std::mem::take(&mut listed));
                                reflector.complete();
                                listing = false;
                            }
                            self.version = Some(bookmark.metadata.resource_version);
                        }
                    }
                    Ok(WatchEvent::Error(status)) => {
                        failed = Some(ApiError::of_status(&status, collection.request("watch")))
                    }
                    Err(kube::Error::SerdeError(error)) => reflector.unreadable(&error),
                    Err(error) => failed = Some(api_error(&error)),
                }
                if failed.is_some() {
                    break;
                }
            }
            match listing {
                true => reflector.listed(listed),
                false => reflector.changed(changed),
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        match listing {
            true => {
                Err(ApiError::new(ApiErrorKind::Unreachable, format!("the list of {} broke off", collection.plural)))
            }
            false => Ok(()),
        }
    }

    fn upsert<R: Resource>(&mut self, object: WireObject<R>, new: bool) -> WatchUpdate<R> {
        self.version = Some(object.version.clone());
        WatchUpdate::Upsert { object, new }
    }
}
