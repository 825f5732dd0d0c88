//! The run before this one: a small file says which it was and until when its hooks were attached, so that the time
//! without hooks is declared.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{Loss, LossKind};
use crate::storage::{Folder, Readers};

/// The file in `--state-dir`.
const FILE: &str = "last-run.json";
/// How often it is brought up to date: what a killed agent's gap may seem too long by.
const PERIOD: Duration = Duration::from_secs(1);
/// More than a file of ours has.
const MAX_BYTES: u64 = 4096;

/// A run and until when it was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    pub run: String,
    pub attached_until: Timestamp,
    /// It ended by itself: `attached_until` is exact.
    pub stopped: bool,
}

/// What this run tells of the one before.
#[derive(Debug)]
pub struct PreviousRun {
    pub run: String,
    /// The time without hooks, until it is told.
    pub gap: Option<(Timestamp, Loss)>,
}

/// The state file, held for the length of this run.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    run: String,
    /// Of the run before; `None` at the first start.
    pub previous: Option<RunFile>,
}

impl StateFile {
    /// Opens the file in `dir`, which is made if need be, and reads what the run before left there.
    pub fn open(dir: &Path, run: &str) -> anyhow::Result<StateFile> {
        let path = dir.join(FILE);
        let folder = Folder::create(dir, Readers::default()).context("--state-dir")?;
        folder.keep_private(|name| name == FILE).context("--state-dir")?;
        let mut file = folder.update(OsStr::new(FILE)).context("--state-dir")?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{} is in use by another agent: give each agent a --state-dir of its own", path.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| path.display().to_string()),
        }
        let mut text = String::new();
        // Half-written by a machine that lost its power, or somebody else's: as good as none.
        let read = Read::by_ref(&mut file).take(MAX_BYTES).read_to_string(&mut text);
        let previous = match read.map_err(anyhow::Error::from).and_then(|_| Ok(serde_json::from_str(&text)?)) {
            Ok(previous) => Some(previous),
            Err(_) if text.is_empty() => None,
            Err(error) => {
                tracing::warn!("{}: not what an agent wrote, so the run before is not known: {error}", path.display());
                None
            }
        };
        Ok(StateFile { file, run: run.to_owned(), previous })
    }

    /// The run before and, as a loss that nobody can count, the time without hooks from its end to `attached`.
    pub fn before(&self, attached: Timestamp) -> Option<PreviousRun> {
        let previous = self.previous.as_ref()?;
        // A clock that was set back makes no gap of negative length.
        let since = previous.attached_until.min(attached);
        let kind = if previous.stopped { LossKind::STOPPED_WITHOUT_HOOKS } else { LossKind::KILLED_WITHOUT_HOOKS };
        let loss = kind.declare(None, attached);
        Some(PreviousRun { run: previous.run.clone(), gap: Some((since, loss)) })
    }

    /// Keeps the file up to date; runs until dropped. A disk that fails costs the next run its knowledge, not this one its work.
    pub async fn keep(&self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            ticks.tick().await;
            match self.write(false) {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    tracing::warn!("the state file can't be written: {error}");
                    failed = true;
                }
                Err(_) => {}
            }
        }
    }

    /// This run's end: its hooks are detached next.
    pub fn end(&self) {
        if let Err(error) = self.write(true) {
            tracing::warn!("the state file can't be written: {error}");
        }
    }

    /// In place: a second's write needs no new inode. Too short to be torn but by a loss of power.
    fn write(&self, stopped: bool) -> io::Result<()> {
        let last = RunFile { run: self.run.clone(), attached_until: Timestamp::now(), stopped };
        let mut line = serde_json::to_vec(&last)?;
        line.push(b'\n');
        self.file.write_all_at(&line, 0)?;
        self.file.set_len(line.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LossStage;

    #[test]
    fn the_gap_reaches_from_the_end_of_one_run_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateFile::open(dir.path(), "aaaa").unwrap();
        assert_eq!(first.previous, None);
        assert!(first.before(Timestamp::now()).is_none());
        first.write(false).unwrap();
        first.end();
        let used = StateFile::open(dir.path(), "bbbb").unwrap_err().to_string();
        assert!(used.contains("in use by another agent"), "{used}");
        drop(first);
        let second = StateFile::open(dir.path(), "bbbb").unwrap();
        let previous = second.previous.clone().unwrap();
        assert_eq!((previous.run.as_str(), previous.stopped), ("aaaa", true));
        let now = Timestamp::now();
        let (since, loss) = second.before(now).unwrap().gap.unwrap();
        assert_eq!(since, previous.attached_until);
        assert_eq!((loss.stage, &*loss.reason, loss.last_time), (LossStage::NotAttached, "stopped", Some(now)));
        // The clock went back meanwhile.
        let earlier = Timestamp::UNIX_EPOCH;
        assert_eq!(second.before(earlier).unwrap().gap.unwrap().0, earlier);
    }

    #[test]
    fn the_file_is_for_the_agent_alone_and_never_a_link() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        drop(StateFile::open(&folder, "aaaa").unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(FILE))), (0o700, 0o600));
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        std::fs::remove_file(folder.join(FILE)).unwrap();
        symlink(&victim, folder.join(FILE)).unwrap();
        let error = format!("{:#}", StateFile::open(&folder, "aaaa").unwrap_err());
        assert!(error.starts_with("--state-dir: ") && error.contains("is a symbolic link"), "{error}");
        assert_eq!(std::fs::read_to_string(victim).unwrap(), "untouched");
    }

    #[test]
    fn a_state_file_of_somebody_else_is_none() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["{\"run\":", "\u{0}\u{0}", "[]", "{\"run\":3}"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let state = StateFile::open(dir.path(), "aaaa").unwrap();
            assert_eq!(state.previous, None);
            state.write(false).unwrap();
            drop(state);
            assert_eq!(StateFile::open(dir.path(), "bbbb").unwrap().previous.unwrap().run, "aaaa");
        }
    }
}
