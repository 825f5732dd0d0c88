//! Re-reads the config file while the agent runs, every second. A file with problems is logged and changes nothing.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Command;
use jiff::Timestamp;
use tokio::sync::watch;

use super::read::{MAX_BYTES, read};
use super::{ConfigFile, ConfigProblem, ConfigProblems, flags};
use crate::model::Cause;
use crate::pipeline::filter::{ConfigFileState, Settings, SettingsState};

/// Interval of reads. Polling sees what inotify misses: the link swap of a mounted ConfigMap.
const POLL: Duration = Duration::from_secs(1);

/// The settings in force and the file that they come from; without a file, the defaults.
#[derive(Debug)]
pub struct Live {
    file: Option<FollowedFile>,
    sender: watch::Sender<SettingsState>,
}

#[derive(Debug)]
struct FollowedFile {
    path: PathBuf,
    /// The agent's command line, which has the known options.
    command: Command,
    /// The content at the agent's start.
    first: ConfigFile,
    /// The bytes in force or, where they had problems, the last ones tried.
    seen: Result<Vec<u8>, String>,
    /// The bytes of the read before, when they differed: a change counts when two reads in a row return the same.
    before: Option<Result<Vec<u8>, String>>,
    all_drops: bool,
}

impl Default for Live {
    fn default() -> Live {
        Live { file: None, sender: watch::Sender::new(SettingsState::default()) }
    }
}

impl Live {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// All problems in the file: the agent does not start with them.
    pub fn start(path: PathBuf, command: Command) -> Result<Live, ConfigProblems> {
        let seen = bytes(&path);
        let first = match &seen {
            Ok(text) => checked(text, &path, &command)?,
            Err(error) => return Err(ConfigProblems::of(&path, vec![ConfigProblem::new(1, error.clone())])),
        };
        let file = ConfigFileState {
            path: path.display().to_string(),
            read_at: Timestamp::now(),
            error: None,
            pending: Vec::new(),
        };
        let state = SettingsState { settings: Arc::new(first.settings.clone()), file: Some(file) };
        let file = FollowedFile { path, command, first, seen, before: None, all_drops: false };
        Ok(Live { file: Some(file), sender: watch::Sender::new(state) })
    }

    /// The content of the file at the start.
    pub fn file(&self) -> Option<&ConfigFile> {
        self.file.as_ref().map(|file| &file.first)
    }

    /// Sets whether the agent records all causes, and warns of listed causes that it does not record.
    pub fn with_all_drops(mut self, all_drops: bool) -> Live {
        if let Some(file) = &mut self.file {
            file.all_drops = all_drops;
            file.warn_of_unrecorded_causes(&file.first.settings);
        }
        self
    }

    /// Notifies of each change of the file's state.
    pub fn changes(&self) -> watch::Receiver<SettingsState> {
        self.sender.subscribe()
    }

    /// Re-reads the file until dropped.
    pub async fn follow(self) {
        let Live { file: Some(mut file), sender } = self else { return std::future::pending().await };
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(outcome) = file.poll() {
                sender.send_modify(|state| file.change(state, outcome));
            }
        }
    }
}

impl FollowedFile {
    /// Reads the file; returns its content or its problems when two reads in a row return the same new bytes.
    fn poll(&mut self) -> Option<Result<ConfigFile, String>> {
        let now = bytes(&self.path);
        if now == self.seen {
            self.before = None;
            return None;
        }
        if self.before.as_ref() != Some(&now) {
            self.before = Some(now);
            return None;
        }
        self.before = None;
        let outcome = match &now {
            Ok(text) => checked(text, &self.path, &self.command).map_err(|problems| problems.to_string()),
            Err(error) => Err(format!("{}: {error}", self.path.display())),
        };
        self.seen = now;
        Some(outcome)
    }

    fn change(&self, state: &mut SettingsState, outcome: Result<ConfigFile, String>) {
        let Some(in_force) = &mut state.file else { return };
        match outcome {
            Ok(file) => {
                in_force.pending = self.pending(&file);
                (in_force.read_at, in_force.error) = (Timestamp::now(), None);
                if in_force.pending.is_empty() {
                    tracing::info!("config file re-read");
                } else {
                    tracing::warn!(
                        "config file re-read; these options take effect at the next start only: {}",
                        in_force.pending.join(", ")
                    );
                }
                self.warn_of_unrecorded_causes(&file.settings);
                state.settings = Arc::new(file.settings);
            }
            Err(error) => {
                tracing::error!("config file not applied, the settings before stay in force: {error}");
                in_force.error = Some(error);
            }
        }
    }

    /// A list of causes does not add causes that the agent does not record.
    fn warn_of_unrecorded_causes(&self, settings: &Settings) {
        let causes: &[Cause] = settings.include.causes.as_deref().unwrap_or_default();
        if !self.all_drops && causes.iter().any(|cause| !cause.is_default()) {
            tracing::warn!("include.causes lists causes that the agent records only with `all-drops: true`");
        }
    }

    /// Options that differ from those at the start.
    fn pending(&self, file: &ConfigFile) -> Vec<String> {
        let value = |file: &ConfigFile, name: &str| {
            file.flags.iter().find(|flag| flag.name == name).map(|flag| flag.values.clone())
        };
        let mut names: Vec<&str> = self.first.flags.iter().chain(&file.flags).map(|flag| flag.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| value(&self.first, name) != value(file, name));
        names.into_iter().map(str::to_owned).collect()
    }
}

fn bytes(path: &std::path::Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX) + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text));
    read.map(|_| text).map_err(|error| format!("can't be read: {error}"))
}

fn checked(text: &[u8], path: &std::path::Path, command: &Command) -> Result<ConfigFile, ConfigProblems> {
    let file = read(text, path)?;
    let problems = flags::problems(&file, command);
    if problems.is_empty() { Ok(file) } else { Err(ConfigProblems::of(path, problems)) }
}
