//! Options of the command line in the config file: each key is an option's long name.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::read::{RUNTIME_KEYS, shown};
use super::{ConfigFile, ConfigProblem};

/// An option that the file sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOption {
    pub name: String,
    pub line: u32,
    /// The values as written, or why there are none.
    pub values: Result<Vec<String>, &'static str>,
}

/// Options that the file can't set.
const NOT_IN_FILES: [&str; 3] = ["config", "help", "version"];
/// The values of an option that takes none on the command line.
const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];

/// The options of the command `agent` that a file can set, those that `--help` hides included.
pub fn settable(agent: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let long = agent.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    long.filter(|(name, _)| !NOT_IN_FILES.contains(name))
}

/// Problems of a file's options: unknown names, and values that the command line would refuse too.
pub fn problems(file: &ConfigFile, agent: &Command) -> Vec<ConfigProblem> {
    file.flags.iter().filter_map(|flag| problem(flag, agent)).collect()
}

fn problem(flag: &FileOption, agent: &Command) -> Option<ConfigProblem> {
    let report = |message: String| Some(ConfigProblem::new(flag.line, message));
    let Some((_, arg)) = settable(agent).find(|(name, _)| *name == flag.name) else {
        return report(unknown(flag, agent));
    };
    let values = match &flag.values {
        Ok(values) => values,
        Err(why) => return report(format!("{} {why}", flag.name)),
    };
    let several = arg.get_value_delimiter().is_some() || matches!(arg.get_action(), ArgAction::Append);
    match values.as_slice() {
        [value] if !arg.get_action().takes_values() && switch(value).is_none() => {
            return report(format!("{} takes true or false, not {:?}", flag.name, shown(value)));
        }
        [_] => {}
        _ if several => {}
        _ => return report(format!("{} takes one value", flag.name)),
    }
    // Each option by itself, so that a bad value is reported with its own line. --config satisfies what is required.
    let words = ["agent", "--config=file"].map(str::to_owned).into_iter().chain(arguments(&flag.name, values, arg));
    let error = agent.clone().try_get_matches_from(words).err()?;
    if error.kind() == ErrorKind::MissingRequiredArgument {
        // The option that this one needs may be on the command line or in another line: checked when all are merged.
        return None;
    }
    // The lines after clap's first one point to the command line's help.
    let text = error.to_string();
    let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    report(message)
}

fn unknown(flag: &FileOption, agent: &Command) -> String {
    let name = shown(&flag.name);
    if NOT_IN_FILES.contains(&name) {
        return format!("{name} can be given on the command line only");
    }
    let top = RUNTIME_KEYS.iter().map(|(key, ..)| key.split('.').next().unwrap_or(key));
    let known: Vec<&str> = settable(agent).map(|(name, _)| name).chain(top).collect();
    let nearest = known.iter().min_by_key(|key| strsim::levenshtein(key, name));
    match nearest.filter(|key| strsim::levenshtein(key, name) <= 3) {
        Some(nearest) => format!("unknown key {name:?}: did you mean {nearest}?"),
        None => {
            let mut known = known;
            known.sort_unstable();
            known.dedup();
            format!("unknown key {name:?}: expected one of {}", known.join(", "))
        }
    }
}

fn switch(value: &str) -> Option<bool> {
    SWITCH.iter().find(|(word, _)| *word == value).map(|(_, on)| *on)
}

fn arguments(name: &str, values: &[String], arg: &Arg) -> Vec<String> {
    if arg.get_action().takes_values() {
        return values.iter().map(|value| format!("--{name}={value}")).collect();
    }
    let on = values.first().and_then(|value| switch(value)).unwrap_or(false);
    on.then(|| format!("--{name}")).into_iter().collect()
}

/// The file's options as arguments, without those that the command line or the environment overrides.
pub fn not_overridden(file: &ConfigFile, agent: &Command, given: &ArgMatches) -> Vec<String> {
    let mut all = Vec::new();
    for flag in &file.flags {
        let Some((_, arg)) = settable(agent).find(|(name, _)| *name == flag.name) else { continue };
        let source = given.value_source(arg.get_id().as_str());
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            all.extend(arguments(&flag.name, flag.values.as_deref().unwrap_or_default(), arg));
        }
    }
    all
}
