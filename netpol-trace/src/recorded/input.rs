//! Logs as they are named on a command line: files, quoted patterns, the folder of an agent's history, standard input.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::unpack::{Reader, Unreadable};
use crate::history;
use crate::storage::Folder;
use crate::tail::lines::LINE_AT_MOST;
use crate::tail::view;
use crate::text::{counted, thousands};

/// What can't be read, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name} {}{}", is(reason), tip(name, reason))]
    Unreadable { name: String, reason: Unreadable },
    #[error("no file matches {0}")]
    NoMatch(String),
    #[error("{0}: {1}")]
    Pattern(String, String),
    #[error(
        "{0} is a folder without records (*.jsonl), so not one of an agent's --history-dir; name its files, or quote a pattern: '{0}/*'"
    )]
    Folder(String),
    #[error("{name} is not a log of netpol-trace: {}; the first is {first}", none_of(*lines))]
    NoRecord { name: String, lines: u64, first: String },
}

fn none_of(lines: u64) -> String {
    match lines {
        1 => "its only line is not a record".to_owned(),
        lines => format!("none of its {} lines is a record", thousands(lines)),
    }
}

/// `x is a gzip archive cut off …`, but `x: no such file`.
fn is(reason: &Unreadable) -> String {
    match reason {
        Unreadable::Io(_) => format!("can't be read: {reason}"),
        Unreadable::Foreign(_) => format!("is {reason}"),
        Unreadable::CutOff(..) | Unreadable::Damaged(..) => format!("is a {reason}"),
    }
}

/// A pod where a file is wanted.
fn tip(name: &str, reason: &Unreadable) -> String {
    let missing = matches!(reason, Unreadable::Io(error) if error.kind() == io::ErrorKind::NotFound);
    match name.split_once('/') {
        Some((before, after))
            if missing && !before.is_empty() && !before.starts_with('.') && !after.contains(['/', '.']) =>
        {
            format!(" (for a pod: netpol-trace tail --pod {name})")
        }
        _ => String::new(),
    }
}

/// One log. It is opened when it is read, so that any number of files can be named.
#[derive(Debug)]
pub struct Input {
    pub name: String,
    pub source: Source,
    /// What can't be opened twice: a pipe.
    open: Option<Reader>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Stdin,
    File(PathBuf),
    /// A file of an agent's history, which may remove it at any time.
    Segment(PathBuf),
}

/// Whether the path stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The logs that `arguments` name, patterns in the order of names; each once. Each can be opened.
pub fn inputs(arguments: &[PathBuf]) -> Result<Vec<Input>, Error> {
    let mut sources = Vec::new();
    for argument in arguments {
        match (is_stdin(argument), fs::metadata(argument)) {
            (true, _) => sources.push(Source::Stdin),
            (false, Ok(metadata)) if metadata.is_dir() => sources.extend(folder(argument)?),
            (false, Err(error)) if error.kind() == io::ErrorKind::NotFound && is_pattern(argument) => {
                sources.extend(matching(argument)?);
            }
            // What is wrong with it is found out when it is opened.
            (false, _) => sources.push(Source::File(argument.clone())),
        }
    }
    let mut seen = HashSet::new();
    sources.retain(|source| match source {
        Source::Stdin => seen.insert(PathBuf::from("-")),
        Source::File(path) | Source::Segment(path) => seen.insert(path.clone()),
    });
    sources.into_iter().map(Input::new).collect()
}

/// The same in the order of their first records: a shell lists `log.1` after `log`, though its records are older.
pub fn in_order_of_time(arguments: &[PathBuf]) -> Result<Vec<Input>, Error> {
    let mut inputs = inputs(arguments)?;
    if inputs.len() < 2 {
        return Ok(inputs);
    }
    let mut dated = Vec::with_capacity(inputs.len());
    for mut input in inputs.drain(..) {
        dated.push((input.first_time()?, input));
    }
    dated.sort_by_key(|(begins, _)| *begins);
    Ok(dated.into_iter().map(|(_, input)| input).collect())
}

fn is_pattern(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// The files that a pattern matches; folders are left out.
fn matching(pattern: &Path) -> Result<Vec<Source>, Error> {
    let name = pattern.display().to_string();
    let wrong = |why: &dyn std::fmt::Display| Error::Pattern(name.clone(), why.to_string());
    let text = pattern.to_str().ok_or_else(|| wrong(&"a pattern must be UTF-8"))?;
    let mut files = Vec::new();
    for path in glob::glob(text).map_err(|error| wrong(&error))? {
        let path = path.map_err(|error| wrong(&error))?;
        if !path.is_dir() {
            files.push(Source::File(path));
        }
    }
    if files.is_empty() { Err(Error::NoMatch(name)) } else { Ok(files) }
}

fn folder(path: &Path) -> Result<Vec<Source>, Error> {
    let name = path.display().to_string();
    let segments = Folder::follow(path)
        .and_then(|folder| history::segments(&folder))
        .map_err(|error| Error::Unreadable { name: name.clone(), reason: error.into() })?;
    if segments.is_empty() {
        return Err(Error::Folder(name));
    }
    Ok(segments.into_iter().map(|segment| Source::Segment(path.join(segment.name))).collect())
}

/// `drops.jsonl`, `3 files`.
pub fn names(inputs: &[Input]) -> String {
    match inputs {
        [input] => input.name.clone(),
        inputs => counted(inputs.len() as u64, "file"),
    }
}

impl Input {
    fn new(source: Source) -> Result<Input, Error> {
        let name = match &source {
            Source::Stdin => "standard input".to_owned(),
            Source::File(path) | Source::Segment(path) => path.display().to_string(),
        };
        let mut input = Input { name, source, open: None };
        let Source::File(path) = &input.source else { return Ok(input) };
        let file = File::open(path).map_err(|error| input.unreadable(error.into()))?;
        let metadata = file.metadata().map_err(|error| input.unreadable(error.into()))?;
        if !metadata.is_file() {
            input.open = Some(Reader::new(file).map_err(|reason| input.unreadable(reason))?);
        }
        Ok(input)
    }

    /// The text of the log, decompressed; `None`: its agent has removed it in between.
    pub fn open(&mut self) -> Result<Option<Reader>, Error> {
        if let Some(open) = self.open.take() {
            return Ok(Some(open));
        }
        let opened = match &self.source {
            Source::Stdin => Reader::new(io::stdin()),
            Source::File(path) => File::open(path).map_err(Into::into).and_then(Reader::new),
            Source::Segment(path) => match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file.map_err(Into::into).and_then(Reader::new),
            },
        };
        opened.map(Some).map_err(|reason| self.unreadable(reason))
    }

    pub fn unreadable(&self, reason: Unreadable) -> Error {
        Error::Unreadable { name: self.name.clone(), reason }
    }

    /// What is wrong with an input of which `lines` lines are not empty and none is a record. An empty one is no error here, and
    /// neither is a file of a history with half a line.
    pub fn without_record(&self, lines: u64, first: Option<&str>) -> Option<Error> {
        if lines == 0 || matches!(self.source, Source::Segment(_)) {
            return None;
        }
        let first = first.unwrap_or("longer than a record can be").to_owned();
        Some(Error::NoRecord { name: self.name.clone(), lines, first })
    }

    /// The time of the record in the first line. What is read is not lost.
    fn first_time(&mut self) -> Result<Option<Timestamp>, Error> {
        let Some(mut reader) = self.open()? else { return Ok(None) };
        let mut head = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while !head.contains(&b'\n') && head.len() < LINE_AT_MOST {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => head.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Comes again when the rest is read.
                Err(_) => break,
            }
        }
        let time = head.split(|byte| *byte == b'\n').next().and_then(view::read).map(|seen| seen.time);
        let again =
            matches!(&self.source, Source::Segment(_)) || matches!(&self.source, Source::File(path) if path.is_file());
        if !again {
            self.open = Some(reader.after(head));
        }
        Ok(time)
    }
}

#[cfg(test)]
mod tests;
