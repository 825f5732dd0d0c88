//! Finds the logs that a command line names: files, quoted patterns, the folder of an agent's history, standard input.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::unpack::{LogReader, Unreadable};
use crate::record::lines::{LINE_AT_MOST, LineSplitter};
use crate::record::magic;
use crate::record::read;
use crate::text::{counted, escape, thousands};

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{name} {}{}", is(reason), tip(name, reason))]
    Unreadable { name: String, reason: Unreadable },
    #[error("no file matches {0}")]
    NoMatch(String),
    #[error("{0}: {1}")]
    Pattern(String, String),
    #[error(
        "{0} is a folder without records (*.jsonl), so not an agent's --history-dir; name its files, or quote a pattern: '{0}/*'"
    )]
    Folder(String),
    #[error("{name} {}", no_record(*lines, first))]
    NoRecord { name: String, lines: u64, first: String },
}

fn no_record(lines: u64, first: &str) -> String {
    let what = match first {
        magic::UNKNOWN_RECORD => "has nothing that this version of netpol-trace can read",
        _ => "is not a log of netpol-trace",
    };
    match lines {
        1 => format!("{what}: its only line is {first}"),
        lines => format!("{what}: none of its {} lines is a record; the first is {first}", thousands(lines)),
    }
}

/// `x is a gzip archive cut off …`, but `x: no such file`.
fn is(reason: &Unreadable) -> String {
    match reason {
        Unreadable::Io(_) => format!("cannot be read: {reason}"),
        Unreadable::Foreign(_) => format!("is {reason}"),
        Unreadable::CutOff(..) | Unreadable::Damaged(..) => format!("is a {reason}"),
    }
}

/// Suggests `--pod` for a missing file whose name looks like a pod's: `db-0`, `pod/db-0`, `staging/db-0`.
fn tip(name: &str, reason: &Unreadable) -> String {
    let missing = matches!(reason, Unreadable::Io(error) if error.kind() == io::ErrorKind::NotFound);
    let is_name = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let parts: Vec<&str> = name.split('/').filter(|part| !["pod", "pods", "po"].contains(part)).collect();
    if !missing || !parts.iter().all(|part| !part.is_empty() && is_name(part)) {
        return String::new();
    }
    match *parts {
        [name] => format!(" (a pod's drops: netpol-trace tail --pod {name} -n NAMESPACE)"),
        [namespace, name] => format!(" (a pod's drops: netpol-trace tail --pod {namespace}/{name})"),
        _ => String::new(),
    }
}

/// One log. It is opened only when it is read, so that any number of files can be named.
#[derive(Debug)]
pub struct LogInput {
    pub name: String,
    pub location: LogLocation,
    /// A pipe, which cannot be opened twice, or why opening failed.
    open: Option<Result<LogReader, LogError>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogLocation {
    Stdin,
    File(PathBuf),
    /// A file of an agent's history, which may remove it at any time.
    Segment(PathBuf),
}

/// Returns true if the path stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Returns the logs that `arguments` name, each once. The files of a pattern are in the order of their names. Fails if a file does not exist.
pub fn inputs(arguments: &[PathBuf]) -> Result<Vec<LogInput>, LogError> {
    let mut locations = Vec::new();
    for argument in arguments {
        match (is_stdin(argument), fs::metadata(argument)) {
            (true, _) => locations.push(LogLocation::Stdin),
            (false, Ok(metadata)) if metadata.is_dir() => locations.extend(folder(argument)?),
            (false, Err(error)) if error.kind() == io::ErrorKind::NotFound && is_pattern(argument) => {
                locations.extend(matching(argument)?);
            }
            // Errors are reported when it is opened.
            (false, _) => locations.push(LogLocation::File(argument.clone())),
        }
    }
    let mut seen = HashSet::new();
    locations.retain(|location| match location {
        LogLocation::Stdin => seen.insert(PathBuf::from("-")),
        // By whatever path it is named.
        LogLocation::File(path) | LogLocation::Segment(path) => {
            seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone()))
        }
    });
    locations.into_iter().map(LogInput::new).collect()
}

/// Returns the logs in the order of their first records: a shell lists `log.1` after `log`, although its records are older.
pub fn in_order_of_time(arguments: &[PathBuf]) -> Result<Vec<LogInput>, LogError> {
    let mut inputs = inputs(arguments)?;
    if inputs.len() < 2 {
        return Ok(inputs);
    }
    let mut dated = Vec::with_capacity(inputs.len());
    for mut input in inputs.drain(..) {
        dated.push((input.first_time(), input));
    }
    dated.sort_by_key(|(begins, _)| *begins);
    Ok(dated.into_iter().map(|(_, input)| input).collect())
}

fn is_pattern(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// Returns the files that a pattern matches, without folders.
fn matching(pattern: &Path) -> Result<Vec<LogLocation>, LogError> {
    let name = pattern.display().to_string();
    let wrong = |why: &dyn std::fmt::Display| LogError::Pattern(name.clone(), why.to_string());
    let text = pattern.to_str().ok_or_else(|| wrong(&"a pattern must be UTF-8"))?;
    let mut files = Vec::new();
    // Skips hidden files, such as an editor's `.drops.jsonl.swp`. The crate's option for that panics on names that are not UTF-8.
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    for path in glob::glob(text).map_err(|error| wrong(&error))? {
        let path = path.map_err(|error| wrong(&error))?;
        if !path.is_dir() && (!hidden(&path) || hidden(pattern)) {
            files.push(LogLocation::File(path));
        }
    }
    if files.is_empty() { Err(LogError::NoMatch(name)) } else { Ok(files) }
}

/// Returns the `*.jsonl` files of a folder by name, which is the order of their age in an agent's history, and notes that there are others.
fn folder(path: &Path) -> Result<Vec<LogLocation>, LogError> {
    let name = path.display().to_string();
    let unreadable = |error: io::Error| LogError::Unreadable { name: name.clone(), reason: error.into() };
    let (mut segments, mut others) = (Vec::new(), 0);
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        match entry.path() {
            file if file.extension().is_some_and(|extension| extension == "jsonl") => segments.push(file),
            file if file.is_file() => others += 1,
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(LogError::Folder(name));
    }
    if others > 0 {
        eprintln!(
            "note: in {name}, {} not read: an agent's --history-dir has only *.jsonl; a quoted pattern reads all: '{name}/*'",
            if others == 1 { "1 other file is".to_owned() } else { format!("{} other files are", thousands(others)) },
            name = escape(&name)
        );
    }
    segments.sort();
    Ok(segments.into_iter().map(LogLocation::Segment).collect())
}

/// `drops.jsonl`, `3 files`.
pub fn names(inputs: &[LogInput]) -> String {
    match inputs {
        [input] => input.name.clone(),
        inputs => counted(inputs.len() as u64, "file"),
    }
}

impl LogInput {
    fn new(location: LogLocation) -> Result<LogInput, LogError> {
        let name = match &location {
            LogLocation::Stdin => "standard input".to_owned(),
            LogLocation::File(path) | LogLocation::Segment(path) => path.display().to_string(),
        };
        let mut input = LogInput { name, location, open: None };
        let LogLocation::File(path) = &input.location else { return Ok(input) };
        match File::open(path) {
            // Most likely a typing error.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(input.unreadable(error.into())),
            Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => {}
            opened => {
                let opened = opened.map_err(Into::into).and_then(LogReader::new);
                input.open = Some(opened.map_err(|reason| input.unreadable(reason)));
            }
        }
        Ok(input)
    }

    /// Opens the log for reading, decompressed. Returns `None` if the agent has removed the file of its history in the meantime.
    pub fn open(&mut self) -> Result<Option<LogReader>, LogError> {
        if let Some(open) = self.open.take() {
            return open.map(Some);
        }
        let opened = match &self.location {
            LogLocation::Stdin => LogReader::new(io::stdin()),
            LogLocation::File(path) => File::open(path).map_err(Into::into).and_then(LogReader::new),
            LogLocation::Segment(path) => match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file.map_err(Into::into).and_then(LogReader::new),
            },
        };
        opened.map(Some).map_err(|reason| self.unreadable(reason))
    }

    pub fn unreadable(&self, reason: Unreadable) -> LogError {
        LogError::Unreadable { name: self.name.clone(), reason }
    }

    /// Returns what is wrong with a log of `lines` lines, none of which is a record. An empty log is no error here, and neither is a file of a
    /// history with only half a line, which a crash can leave.
    pub fn without_record(&self, lines: u64, first: Option<&str>) -> Option<LogError> {
        let torn = lines == 1 && first == Some(magic::CUT_OFF) && matches!(self.location, LogLocation::Segment(_));
        if lines == 0 || torn {
            return None;
        }
        let first = first.unwrap_or_default().to_owned();
        Some(LogError::NoRecord { name: self.name.clone(), lines, first })
    }

    /// Returns the time of the first record, which may come after half a line or other output of an agent. The bytes read, or the error, are
    /// kept for [`LogInput::open`].
    fn first_time(&mut self) -> Option<Timestamp> {
        let mut reader = match self.open() {
            Ok(reader) => reader?,
            Err(problem) => {
                self.open = Some(Err(problem));
                return None;
            }
        };
        let (mut head, mut time) = (Vec::new(), None);
        let (mut splitter, mut buffer) = (LineSplitter::default(), [0; 16 * 1024]);
        while time.is_none() && head.len() < LINE_AT_MOST {
            let read = match reader.read(&mut buffer) {
                Ok(read) => buffer.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Reported when the rest is read.
                Err(_) => &[],
            };
            let mut take = |line: &[u8]| time = time.or_else(|| read::read(line).map(|seen| seen.time));
            splitter.split(read, &mut take);
            if read.is_empty() {
                splitter.finish(take);
                break;
            }
            head.extend_from_slice(read);
        }
        let again = matches!(&self.location, LogLocation::Segment(_))
            || matches!(&self.location, LogLocation::File(path) if path.is_file());
        if !again {
            self.open = Some(Ok(reader.after(head)));
        }
        time
    }
}

#[cfg(test)]
mod tests;
