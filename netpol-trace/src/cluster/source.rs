//! The cluster's current state: sources change one [`Cluster`] in place, and the pipeline reads it.

mod files;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use crate::lock::IgnorePoison;

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
    /// Whether the index is what the source has now. While `false` the last good state is used.
    pub synced: bool,
    /// When the current state was read.
    pub loaded_at: Timestamp,
    /// Objects in the index, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Objects of kinds that are not read, by kind.
    pub skipped: BTreeMap<String, u64>,
    /// The first problem, with its location; `None` when synced.
    pub error: Option<String>,
    /// More about the source, for people.
    pub detail: Option<String>,
}

impl SourceStatus {
    /// The status of a source that has not reported yet.
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

/// The index and the status of its sources, kept current. Clones share them.
#[derive(Debug, Clone)]
pub struct Cluster {
    shared: Arc<ClusterState>,
}

#[derive(Debug)]
struct ClusterState {
    index: RwLock<Index>,
    /// By name. Has its own lock because readers of the index read it too.
    sources: Mutex<BTreeMap<String, SourceStatus>>,
    /// Queued events, and the number of events that found no room.
    events: Mutex<(Vec<PolicyEvent>, u64)>,
    changes: watch::Sender<u64>,
    /// With manifests as the source.
    files: Option<Files>,
}

impl Cluster {
    /// Empty and not synced. A source fills it.
    pub fn live() -> Cluster {
        Cluster::new(None)
    }

    /// Reads `paths` once. If the input has errors, the state has what could be read and is not synced: the caller decides
    /// whether to start with it.
    pub fn from_manifests(paths: &[PathBuf]) -> (Cluster, Loaded) {
        let (files, loaded) = Files::first(paths);
        let cluster = Cluster::new(Some(files));
        cluster.take_files(&loaded, loaded.objects.iter().map(|located| located.object.clone()), Timestamp::now());
        (cluster, loaded)
    }

    fn new(files: Option<Files>) -> Cluster {
        let (index, sources, events) = (RwLock::default(), Mutex::default(), Mutex::default());
        Cluster { shared: Arc::new(ClusterState { index, sources, events, changes: watch::Sender::new(0), files }) }
    }

    /// Locks the index for reading. Hold the lock briefly, because changes wait for it, and never twice in one thread.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.shared.index.read().ignore_poison()
    }

    /// Applies `changes`, which the source reported at `at` on this machine's clock. Readers see all of them or none.
    pub fn apply(&self, changes: Vec<Change>, at: Timestamp) {
        let mut index = self.shared.index.write().ignore_poison();
        index.apply(changes, at);
        let (events, lost) = index.take_events();
        if events.is_empty() && lost == 0 {
            return;
        }
        let mut waiting = self.shared.events.lock().ignore_poison();
        let room = MAX_EVENTS.saturating_sub(waiting.0.len());
        waiting.1 += lost + events.len().saturating_sub(room) as u64;
        waiting.0.extend(events.into_iter().take(room));
    }

    /// Sets the addresses of the network namespace that the agent runs in; see [`Index::set_local_addresses`].
    pub fn set_local_addresses(&self, addresses: &[IpAddr]) {
        if !self.read().has_local_addresses(addresses) {
            self.shared.index.write().ignore_poison().set_local_addresses(addresses);
        }
    }

    /// Sets the status of a source, which its name identifies. A source that has not reported yet has the status
    /// [`SourceStatus::expected`].
    pub fn set_source(&self, status: SourceStatus) {
        let (synced, error) = (status.synced, status.error.clone());
        let before = self.lock_sources().insert(status.name.clone(), status);
        if before.is_none_or(|before| before.synced != synced || before.error != error) {
            self.changed();
        }
    }

    /// Removes a source and its status.
    pub fn remove_source(&self, name: &str) {
        self.lock_sources().remove(name);
    }

    /// Whether all sources are in sync.
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

    /// Takes the queued events, and the number of events that found no room.
    pub fn take_events(&self) -> (Vec<PolicyEvent>, u64) {
        std::mem::take(&mut *self.shared.events.lock().ignore_poison())
    }

    pub fn sources(&self) -> Vec<SourceStatus> {
        self.lock_sources().values().cloned().collect()
    }

    /// Counts changes of `synced` or `error` in the sources' status.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn lock_sources(&self) -> MutexGuard<'_, BTreeMap<String, SourceStatus>> {
        self.shared.sources.lock().ignore_poison()
    }
}

#[cfg(test)]
mod tests;
