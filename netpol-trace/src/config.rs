//! The config file: every option of the agent by its long name, and what goes into records, which is re-read while the agent runs.
//!
//! [`read`] turns text into a [`File`] or into problems with their lines; [`flags`] joins the options with the command
//! line's; [`live`] re-reads. docs/configuration.md has every key.

pub mod flags;
pub mod live;
pub mod read;
pub mod select;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

pub use flags::Flag;
pub use live::Live;
pub use select::{Ends, Pattern, Selection};

use crate::record::{Body, Endpoint};
use crate::text::escape;

/// Every option of the agent by its long name, each with the values that it takes where these are a closed set.
pub fn options() -> Vec<(String, Vec<String>)> {
    let command = crate::cli::agent::command();
    let long = command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), arg)));
    let values = |arg: &clap::Arg| match arg.get_action().takes_values() {
        true => arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect(),
        false => Vec::new(),
    };
    long.map(|(name, arg)| (name, values(arg))).collect()
}

/// What a config file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct File {
    /// Options of the agent; they count at its start.
    pub flags: Vec<Flag>,
    pub settings: Settings,
}

/// What can change while the agent runs: which drops get a record, and what of a pod and of its DNS answers goes in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// A drop must fit every list given here; an absent list fits all.
    pub include: Selection,
    /// A drop that fits any list given here gets no record.
    pub exclude: Selection,
    /// The pod labels that go into records; `None` for all.
    pub labels: Option<Vec<Pattern>>,
    /// The DNS names that go into records; `None` for all.
    pub dns_names: Option<Vec<Pattern>>,
}

/// Stands in for a DNS name that is not to be written.
pub const REDACTED: &str = "redacted";

impl Settings {
    /// Whether something gets a record. What gets none is counted all the same.
    pub fn admits(&self, cause: Option<crate::model::Cause>, ends: &Ends<'_>) -> bool {
        self.include.fits_all(cause, ends) && !self.exclude.fits_any(cause, ends)
    }

    /// Takes out of a record what must not be written.
    pub fn redact(&self, body: &mut Body) {
        let ends = match body {
            Body::Drop(drop) => [&mut drop.source, &mut drop.destination],
            Body::Unanswered(silent) => [&mut silent.source, &mut silent.destination],
            Body::PolicyChange(_) | Body::Loss(_) | Body::Status(_) => return,
        };
        for end in ends {
            self.redact_end(end);
        }
    }

    fn redact_end(&self, end: &mut Endpoint) {
        if let (Some(allowed), Some(pod)) = (&self.labels, &mut end.pod) {
            let fits = |key: &str| allowed.iter().any(|pattern| pattern.matches(key));
            if !pod.labels.keys().all(|key| fits(key)) {
                pod.to_mut().labels.retain(|key, _| fits(key));
            }
        }
        if let Some(allowed) = &self.dns_names {
            for name in &mut end.names {
                if !allowed.iter().any(|pattern| pattern.matches(name)) {
                    REDACTED.clone_into(name);
                }
            }
            end.names.dedup();
        }
    }
}

/// What is wrong in a config file, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub line: u32,
    pub message: String,
}

impl Problem {
    fn new(line: u32, message: impl Into<String>) -> Problem {
        Problem { line, message: message.into() }
    }
}

/// All problems of a file, one a line.
#[derive(Debug, thiserror::Error)]
pub struct Problems {
    pub path: String,
    pub problems: Vec<Problem>,
}

impl Problems {
    fn of(path: &Path, problems: Vec<Problem>) -> Problems {
        Problems { path: path.display().to_string(), problems }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let end = if n == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{}: {}", self.path, problem.line, escape(&problem.message))?;
        }
        Ok(())
    }
}
