//! Manifest files as a source: read at the start, and again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::super::kinds::KINDS;
use super::super::manifests::{self, Loaded};
use super::super::{Change, Kind, Object};
use super::{Cluster, SourceStatus};
use crate::model::cluster::Policy;

/// How often files are looked at. Polling sees what inotify misses: the link swap of a mounted ConfigMap, a network file
/// system, a folder that comes later.
pub const POLL: Duration = Duration::from_millis(500);

/// The files, and what they looked like when they were read.
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
    /// Re-reads the files when they change; runs until dropped, and without files does nothing. A change counts when two
    /// looks in a row see the same, so a file that is being written is left alone.
    pub async fn watch(&self) {
        if self.shared.files.is_none() {
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_look = None;
        loop {
            ticks.tick().await;
            let (cluster, before) = (self.clone(), last_look.take());
            // A panic in there (a bug) must not end the watch: the next tick tries again.
            last_look = tokio::task::spawn_blocking(move || cluster.look(before)).await.ok().flatten();
        }
    }

    /// One look at the files; reads them when they settled on something new.
    pub(super) fn look(&self, before: Option<Signature>) -> Option<Signature> {
        let files = self.shared.files.as_ref()?;
        let now = Signature::of(&files.paths);
        let mut seen = files.seen.lock().unwrap_or_else(PoisonError::into_inner);
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
            // The last good state stays in force.
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
                // Files don't say when a policy changed: one that differs from the last load changed at this one.
                let undated = loaded.objects.iter().map(|located| match &located.object {
                    Object::Policy(policy) => Object::Policy(Policy { changed: None, ..policy.clone() }),
                    object => object.clone(),
                });
                self.take_files(&loaded, undated, at);
            }
        }
    }

    /// Puts what the files hold in force.
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

/// What `stat` says of every file behind the paths: enough to see any change that a writer doesn't hide on purpose.
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
