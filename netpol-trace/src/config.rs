//! The config file: every option of the agent by its long name, and the settings of records, which the agent re-reads while it
//! runs.
//!
//! [`read`] turns text into a [`ConfigFile`] or into problems with their lines; [`flags`] merges the options with the command
//! line's; [`live`] re-reads. docs/configuration.md has every key.

pub mod flags;
pub mod live;
pub mod read;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

pub use crate::pipeline::filter::{DropCriteria, Pattern, Settings};
pub use flags::FileOption;
pub use live::Live;

use crate::text::escape;

/// Every option of the agent by its long name, each with its values where they are a closed set.
pub fn options() -> Vec<(String, Vec<String>)> {
    let command = crate::cli::agent::command();
    let long = command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), arg)));
    let values = |arg: &clap::Arg| match arg.get_action().takes_values() {
        true => arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect(),
        false => Vec::new(),
    };
    long.map(|(name, arg)| (name, values(arg))).collect()
}

/// The content of a config file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigFile {
    /// Options of the agent; they take effect at its start.
    pub flags: Vec<FileOption>,
    pub settings: Settings,
}

/// What is wrong in a config file, where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    pub line: u32,
    pub message: String,
}

impl ConfigProblem {
    fn new(line: u32, message: impl Into<String>) -> ConfigProblem {
        ConfigProblem { line, message: message.into() }
    }
}

/// All problems of a file; displayed one per line.
#[derive(Debug, thiserror::Error)]
pub struct ConfigProblems {
    pub path: String,
    pub problems: Vec<ConfigProblem>,
}

impl ConfigProblems {
    fn of(path: &Path, problems: Vec<ConfigProblem>) -> ConfigProblems {
        ConfigProblems { path: path.display().to_string(), problems }
    }
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let end = if n == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{}: {}", self.path, problem.line, escape(&problem.message))?;
        }
        Ok(())
    }
}
