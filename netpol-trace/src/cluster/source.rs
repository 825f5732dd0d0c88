//! The running state: one [`Cluster`] that sources change in place and the pipeline reads.

mod files;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use files::Files;
use jiff::Timestamp;
use tokio::sync::watch;

use super::index::{MAX_EVENTS, PolicyEvent};
use super::manifests::Loaded;
use super::{Change, Index};

/// The state of one source, for `status` records and `/readyz`.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceStatus {
    /// `manifests`, or what is watched: `pods`, `networkpolicies` …
    pub name: String,
    /// Whether the state is what the source says now; `false` while the last good state stands in for it.
    pub synced: bool,
    /// When the state in force was read.
    pub loaded_at: Timestamp,
    /// Objects in force, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Objects of kinds that are not read, by kind.
    pub skipped: BTreeMap<String, u64>,
    /// The first problem, with its place; `None` when synced.
    pub error: Option<String>,
    /// PolicyEventKind else is worth knowing of it.
    pub detail: Option<String>,
}

impl SourceStatus {
    /// Expected, and not heard of yet.
    pub fn expected(name: &str) -> SourceStatus {
        SourceStatus {
            name: name.to_owned(),
            synced: false,
            loaded_at: Timestamp::now(),
            objects: BTreeMap::new(),
            skipped: BTreeMap::new(),
            error: None,
            detail: None,
        }
    }
}

/// PolicyEventKind is known of the cluster, kept current. Clones share it.
#[derive(Debug, Clone)]
pub struct Cluster {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    index: RwLock<Index>,
    /// By name. A lock of its own: asked while the index is read.
    sources: Mutex<BTreeMap<String, SourceStatus>>,
    /// PolicyEventKind is to be told, and how many had no room.
    events: Mutex<(Vec<PolicyEvent>, u64)>,
    changes: watch::Sender<u64>,
    /// With manifests as the source.
    files: Option<Files>,
}

impl Cluster {
    /// Empty, and not synced: whoever watches the cluster fills it.
    pub fn live() -> Cluster {
        Cluster::new(None)
    }

    /// Reads `paths` once. Where the input has errors the state holds what could be read, and is not synced; whether to
    /// start on that is the caller's choice.
    pub fn from_manifests(paths: &[PathBuf]) -> (Cluster, Loaded) {
        let (files, loaded) = Files::first(paths);
        let cluster = Cluster::new(Some(files));
        cluster.take_files(&loaded, loaded.objects.iter().map(|located| located.object.clone()), Timestamp::now());
        (cluster, loaded)
    }

    fn new(files: Option<Files>) -> Cluster {
        let (index, sources, events) = (RwLock::default(), Mutex::default(), Mutex::default());
        Cluster { shared: Arc::new(Inner { index, sources, events, changes: watch::Sender::new(0), files }) }
    }

    /// The state in force. Held briefly: changes wait for it. Never taken twice by one thread at once.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `changes`, which the source learned `at`, on this machine's clock. Readers see all of them or none.
    pub fn apply(&self, changes: Vec<Change>, at: Timestamp) {
        let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
        index.apply(changes, at);
        let (events, lost) = index.take_events();
        if events.is_empty() && lost == 0 {
            return;
        }
        let mut waiting = self.shared.events.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_EVENTS.saturating_sub(waiting.0.len());
        waiting.1 += lost + events.len().saturating_sub(room) as u64;
        waiting.0.extend(events.into_iter().take(room));
    }

    /// Tells how a source stands. Sources are told apart by their names; one that is expected says so by a first status,
    /// not synced.
    pub fn set_source(&self, status: SourceStatus) {
        let (synced, error) = (status.synced, status.error.clone());
        let before = self.lock_sources().insert(status.name.clone(), status);
        if before.is_none_or(|before| before.synced != synced || before.error != error) {
            self.changed();
        }
    }

    /// Forgets a source: it is no longer asked.
    pub fn remove_source(&self, name: &str) {
        self.lock_sources().remove(name);
    }

    /// Whether what is in force is what all sources say now.
    pub fn synced(&self) -> bool {
        self.stale().is_empty()
    }

    /// The sources that are not in sync.
    pub fn stale(&self) -> Vec<String> {
        let sources = self.lock_sources();
        if sources.is_empty() {
            return vec!["the cluster".to_owned()];
        }
        sources.values().filter(|source| !source.synced).map(|source| source.name.clone()).collect()
    }

    /// Changes of policies that nobody took yet, and how many had no room.
    pub fn take_events(&self) -> (Vec<PolicyEvent>, u64) {
        std::mem::take(&mut *self.shared.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn sources(&self) -> Vec<SourceStatus> {
        self.lock_sources().values().cloned().collect()
    }

    /// Changes when a source's status does in more than its counts; the number counts that.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn lock_sources(&self) -> MutexGuard<'_, BTreeMap<String, SourceStatus>> {
        self.shared.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
