//! The agent's history: a bounded ring of records on disk. Files of JSON lines, oldest first by name; the oldest goes when
//! the next finds no room.
//!
//! A crash may tear the last line of a file; no file is written to twice, so that nothing follows the torn line. Two
//! agents may share a folder for the moment of an upgrade: their files have their runs in their names.

mod follow;
mod sink;

pub use follow::Follower;
pub use sink::History;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;

/// Octets on disk, if not told otherwise.
pub const DEFAULT_SIZE: u64 = 64 << 20;
/// The ring's parts: what one deletion forgets.
const PARTS: u64 = 16;
/// Fewer octets would not hold a few records a file.
pub const SMALLEST_SIZE: u64 = 1 << 20;
const ENDING: &str = ".jsonl";

/// The writing end: one per agent.
#[derive(Debug)]
pub struct Ring {
    folder: PathBuf,
    run: String,
    size: u64,
    current: Option<Current>,
    /// Files of this run so far.
    files: u64,
}

#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Ring {
    /// Makes the folder if need be. What earlier runs left stays, as far as there is room.
    pub fn open(folder: &Path, run: &str, size: u64) -> io::Result<Ring> {
        fs::create_dir_all(folder)?;
        // Found out now rather than at the first drop.
        segments(folder)?;
        let size = size.max(SMALLEST_SIZE);
        let mut ring = Ring { folder: folder.to_owned(), run: run.to_owned(), size, current: None, files: 0 };
        ring.current = Some(ring.next()?);
        Ok(ring)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Appends whole lines. After an error nothing of them is in the ring.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let full = self.size / PARTS;
        let current = match self.current.take() {
            Some(current) if current.length < full => current,
            _ => self.next()?,
        };
        let current = self.current.insert(current);
        let written = current.file.write_all(lines);
        if let Err(error) = written {
            // The file system is full, or gone: a new file is tried next time, and no line follows half a line.
            let _ = current.file.set_len(current.length);
            self.current = None;
            return Err(error);
        }
        current.length += lines.len() as u64;
        Ok(())
    }

    fn next(&mut self) -> io::Result<Current> {
        self.make_room()?;
        self.files += 1;
        let name = format!("{:013}-{}-{:06}{ENDING}", Timestamp::now().as_millisecond(), self.run, self.files);
        let path = self.folder.join(name);
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        Ok(Current { file, path, length: 0 })
    }

    /// Removes the oldest files until one more fits.
    fn make_room(&self) -> io::Result<()> {
        let segments = segments(&self.folder)?;
        let mut total: u64 = segments.iter().map(|segment| segment.length).sum();
        for segment in &segments {
            if total + self.size / PARTS <= self.size {
                break;
            }
            if self.current.as_ref().is_some_and(|current| current.path == segment.path) {
                continue;
            }
            match fs::remove_file(&segment.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => total -= segment.length,
            }
        }
        Ok(())
    }
}

/// One file of the ring.
#[derive(Debug)]
pub struct Segment {
    pub name: OsString,
    pub path: PathBuf,
    pub length: u64,
    pub modified: SystemTime,
}

/// The ring's files, oldest first.
pub fn segments(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().ends_with(ENDING.as_bytes()) {
            continue;
        }
        // Removed in between by the agent.
        let Ok(metadata) = entry.metadata() else { continue };
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        segments.push(Segment { name, path: entry.path(), length: metadata.len(), modified });
    }
    segments.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(segments)
}

/// From when the ring can answer: the time of its oldest record.
pub fn reaches_back_to(folder: &Path) -> io::Result<Option<Timestamp>> {
    for segment in segments(folder)? {
        let Ok(file) = File::open(&segment.path) else { continue };
        let mut line = Vec::new();
        BufReader::new(io::Read::take(file, crate::tail::lines::LINE_AT_MOST as u64)).read_until(b'\n', &mut line)?;
        if let Some(seen) = crate::tail::view::read(line.trim_ascii_end()) {
            return Ok(Some(seen.time));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
