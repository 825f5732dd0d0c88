//! The running source: one [`Cluster`] that the pipeline reads and a task that keeps it current.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::watch;

use super::Index;
use super::manifests::{self, Loaded};
use super::model::{Object, Policy};

/// How often files are looked at. Polling sees what inotify misses: the link swap of a mounted ConfigMap, a network file
/// system, a folder that comes later.
pub const POLL: Duration = Duration::from_millis(500);

/// The state of one source, for `status` records and `/readyz`.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceStatus {
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
}

/// What is known of the cluster, kept current. Clones share it.
#[derive(Debug, Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    paths: Vec<PathBuf>,
    state: RwLock<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    index: Arc<Index>,
    status: SourceStatus,
    /// What the files looked like when they were read.
    seen: Signature,
}

impl Cluster {
    /// Reads `paths` once. Where the input has errors the state holds what could be read, and is not synced; whether to
    /// start on that is the caller's choice.
    pub fn from_manifests(paths: &[PathBuf]) -> (Cluster, Loaded) {
        let seen = Signature::of(paths);
        let loaded = manifests::load(paths);
        let index = Index::from_objects(loaded.objects.iter().map(|located| located.object.clone()));
        let status = SourceStatus {
            name: "manifests".to_owned(),
            synced: loaded.error().is_none(),
            loaded_at: Timestamp::now(),
            objects: loaded.counts.clone(),
            skipped: loaded.skipped.clone(),
            error: loaded.error().map(ToString::to_string),
        };
        let state = RwLock::new(State { index: Arc::new(index), status, seen });
        let shared = Shared { paths: paths.to_vec(), state, changes: watch::Sender::new(0) };
        (Cluster { shared: Arc::new(shared) }, loaded)
    }

    /// The state in force. Holding it does not hold up a reload.
    pub fn read(&self) -> Arc<Index> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner).index.clone()
    }

    /// Whether what is in force is what the source says now.
    pub fn synced(&self) -> bool {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner).status.synced
    }

    pub fn sources(&self) -> Vec<SourceStatus> {
        vec![self.shared.state.read().unwrap_or_else(PoisonError::into_inner).status.clone()]
    }

    /// Changes when the state or a source's status does; the number counts them.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Re-reads the files when they change; runs until dropped. A change counts when two looks in a row see the same, so
    /// a file that is being written is left alone.
    pub async fn watch(&self) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_look = None;
        loop {
            ticks.tick().await;
            let (cluster, before) = (self.clone(), last_look.take());
            // A panic in there (a bug) must not end the watch: the next tick tries again.
            last_look = tokio::task::spawn_blocking(move || cluster.look(before)).await.ok();
        }
    }

    /// One look at the files; reads them when they settled on something new.
    fn look(&self, before: Option<Signature>) -> Signature {
        let now = Signature::of(&self.shared.paths);
        let known = self.shared.state.read().unwrap_or_else(PoisonError::into_inner).seen == now;
        if !known && before.as_ref() == Some(&now) {
            self.reload(now.clone());
        }
        now
    }

    fn reload(&self, seen: Signature) {
        let loaded = manifests::load(&self.shared.paths);
        let at = Timestamp::now();
        let previous = self.read();
        let error = loaded.error().map(ToString::to_string);
        let fresh = error.is_none().then(|| {
            let objects = loaded.objects.into_iter().map(|located| located.object);
            Arc::new(Index::from_objects(objects.map(|object| dated(object, &previous, at))))
        });
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        state.seen = seen;
        state.status.synced = error.is_none();
        state.status.error = error;
        if let Some(index) = fresh {
            state.index = index;
            state.status.loaded_at = at;
            state.status.objects = loaded.counts;
            state.status.skipped = loaded.skipped;
        }
        drop(state);
        self.shared.changes.send_modify(|count| *count += 1);
    }
}

/// Files don't say when a policy changed: one that differs from the last load changed at this one.
fn dated(object: Object, previous: &Index, now: Timestamp) -> Object {
    let Object::Policy(mut policy) = object else { return object };
    policy.changed = match previous.policy(&policy.namespace, &policy.name) {
        Some(old) if same(old, &policy) => old.changed.or(policy.changed),
        _ => Some(now),
    };
    Object::Policy(policy)
}

fn same(old: &Policy, new: &Policy) -> bool {
    let kept = old.clone();
    // Labels and annotations decide nothing.
    *old == Policy { changed: kept.changed, labels: kept.labels, annotations: kept.annotations, ..new.clone() }
}

/// What `stat` says of every file behind the paths: enough to see any change that a writer doesn't hide on purpose.
#[derive(Debug, Clone, PartialEq)]
struct Signature(Vec<(PathBuf, Option<Stat>)>);

/// Modification time, size, inode.
type Stat = (SystemTime, u64, u64);

impl Signature {
    fn of(paths: &[PathBuf]) -> Signature {
        let mut files = Vec::new();
        for path in paths.iter().filter(|path| path.as_os_str() != "-") {
            files.extend(manifests::files(path).0);
        }
        Signature(files.into_iter().map(|file| (file.clone(), stat(&file))).collect())
    }
}

fn stat(file: &Path) -> Option<Stat> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

#[cfg(test)]
mod tests;
