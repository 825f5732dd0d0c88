//! Manifest files as a source: read at start-up, and again when they change.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::super::kinds::KINDS;
use super::super::manifests::{self, Loaded};
use super::super::{Change, Kind, Object};
use super::{Cluster, SourceStatus};
use crate::lock::IgnorePoison;
use crate::model::cluster::Policy;

/// Interval at which the files are checked. Polling sees changes that inotify misses: the link swap of a mounted ConfigMap, a
/// network file system, a folder that is made later.
pub const POLL: Duration = Duration::from_millis(500);

/// The files, and their signature when they were read.
#[derive(Debug)]
pub(super) struct Files {
    paths: Vec<PathBuf>,
    seen: Mutex<Signature>,
}

impl Files {
    /// Reads `paths` for the first time.
    pub(super) fn first(paths: &[PathBuf]) -> (Files, Loaded) {
        let seen = Mutex::new(Signature::of(paths));
        (Files { paths: paths.to_vec(), seen }, manifests::load(paths))
    }
}

impl Cluster {
    /// Re-reads the files when they change, until dropped. A change counts when two checks in a row see the same signature, so
    /// that a file is not read while it is written. Without files nothing happens.
    pub async fn watch(&self) {
        if self.shared.files.is_none() {
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_signature = None;
        loop {
            ticks.tick().await;
            let (cluster, before) = (self.clone(), last_signature.take());
            // A panic (a bug) must not end the watch: the next tick tries again.
            last_signature = tokio::task::spawn_blocking(move || cluster.check(before)).await.ok().flatten();
        }
    }

    /// Checks the files once, and reads them if they changed and now stay the same.
    pub(super) fn check(&self, before: Option<Signature>) -> Option<Signature> {
        let files = self.shared.files.as_ref()?;
        let now = Signature::of(&files.paths);
        let mut seen = files.seen.lock().ignore_poison();
        if *seen != now && before.as_ref() == Some(&now) {
            *seen = now.clone();
            self.reload(&files.paths);
        }
        Some(now)
    }

    fn reload(&self, paths: &[PathBuf]) {
        let loaded = manifests::load(paths);
        let at = Timestamp::now();
        match loaded.error() {
            // The last good state stays in use.
            Some(error) => {
                let error = error.to_string();
                let before = self.sources().pop();
                self.set_source(SourceStatus {
                    synced: false,
                    error: Some(error),
                    ..before.unwrap_or_else(|| status(&loaded, at))
                });
            }
            None => {
                // Files do not have the time of a change: a policy that differs from the last load changed now.
                let undated = loaded.objects.iter().map(|located| match &located.object {
                    Object::Policy(policy) => Object::Policy(Policy { changed: None, ..policy.clone() }),
                    object => object.clone(),
                });
                self.take_files(&loaded, undated, at);
            }
        }
    }

    /// Replaces the state by the objects of the files.
    pub(super) fn take_files(&self, loaded: &Loaded, objects: impl Iterator<Item = Object>, at: Timestamp) {
        let mut kinds: Vec<(Kind, Vec<Object>)> = KINDS.iter().map(|entry| (entry.kind.clone(), Vec::new())).collect();
        for object in objects {
            let kind = object.kind();
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, objects)) => objects.push(object),
                None => kinds.push((kind, vec![object])),
            }
        }
        // Kinds of other policies that are no longer in the files.
        for kind in self.read().other_policy_kinds() {
            if !kinds.iter().any(|(known, _)| *known == kind) {
                kinds.push((kind, Vec::new()));
            }
        }
        let changes = kinds.into_iter().map(|(kind, objects)| Change::Replace(kind.into(), objects));
        self.apply(changes.collect(), at);
        self.lock_sources().insert(NAME.to_owned(), status(loaded, at));
        self.changed();
    }
}

const NAME: &str = "manifests";

fn status(loaded: &Loaded, at: Timestamp) -> SourceStatus {
    SourceStatus {
        name: NAME.to_owned(),
        synced: loaded.error().is_none(),
        loaded_at: at,
        objects: loaded.counts.clone(),
        skipped: loaded.skipped.clone(),
        error: loaded.error().map(ToString::to_string),
        detail: None,
    }
}

/// The result of `stat` for every file behind the paths: enough to notice any change that a writer does not hide on purpose.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Signature(Vec<(PathBuf, Option<Stat>)>);

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
