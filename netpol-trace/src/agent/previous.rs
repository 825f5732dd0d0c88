//! The state file: the id of the run before this one and the time until which its hooks were attached, so that this run can declare the
//! time without hooks.

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
/// Period of updates. The declared gap after a killed agent is too long by at most this.
const PERIOD: Duration = Duration::from_secs(1);
/// Largest size that is read. The file of an agent is smaller.
const MAX_BYTES: u64 = 4096;

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    pub run: String,
    pub attached_until: Timestamp,
    /// The run ended by itself, so `attached_until` is exact.
    pub stopped: bool,
}

/// The run before this one.
#[derive(Debug)]
pub struct PreviousRun {
    pub run: String,
    /// The time without hooks, until it is declared.
    pub gap: Option<(Timestamp, Loss)>,
}

/// The state file, which is locked during this run.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    run: String,
    /// The content that the run before left; `None` at the first start.
    pub previous: Option<RunFile>,
}

impl StateFile {
    /// Opens the file in `dir`, creates what is missing, and reads what the run before left there.
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
        // Invalid content, of a machine that lost its power or of another program, is treated like none.
        let read = Read::by_ref(&mut file).take(MAX_BYTES).read_to_string(&mut text);
        let previous = match read.map_err(anyhow::Error::from).and_then(|_| Ok(serde_json::from_str(&text)?)) {
            Ok(previous) => Some(previous),
            Err(_) if text.is_empty() => None,
            Err(error) => {
                tracing::warn!(
                    "{}: this is no state file of an agent, so the run before is not known: {error}",
                    path.display()
                );
                None
            }
        };
        Ok(StateFile { file, run: run.to_owned(), previous })
    }

    /// Returns the run before and, as a loss without a count, the time without hooks from its end to `attached`.
    pub fn before(&self, attached: Timestamp) -> Option<PreviousRun> {
        let previous = self.previous.as_ref()?;
        // If the clock was set back, the gap has length zero.
        let since = previous.attached_until.min(attached);
        let kind = if previous.stopped { LossKind::STOPPED_WITHOUT_HOOKS } else { LossKind::KILLED_WITHOUT_HOOKS };
        let loss = kind.declare(None, attached);
        Some(PreviousRun { run: previous.run.clone(), gap: Some((since, loss)) })
    }

    /// Keeps the file up to date until dropped. If the disk fails, the next run lacks the time, and this run goes on.
    pub async fn keep(&self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            ticks.tick().await;
            match self.write(false) {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    tracing::warn!("the state file cannot be written: {error}");
                    failed = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Notes the end of this run. The caller detaches the hooks next.
    pub fn end(&self) {
        if let Err(error) = self.write(true) {
            tracing::warn!("the state file cannot be written: {error}");
        }
    }

    /// Writes in place, because a new inode each second would cost more. Only a loss of power can tear such a short write.
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
    fn an_invalid_state_file_is_ignored() {
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
