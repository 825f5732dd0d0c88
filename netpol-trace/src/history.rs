//! The agent's history: a bounded ring of records on disk. Files of JSON lines, in the order of their names. The oldest file is removed if the
//! next one does not fit.
//!
//! A crash may cut off the last line of a file. Each run writes new files only, so nothing follows a line that is cut off. During an upgrade two
//! agents may share a folder: the names of their files differ by the run.

mod follow;

pub use follow::Follower;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::storage::{self, Folder, Readers};

/// Default size on disk, in bytes.
pub const DEFAULT_SIZE: u64 = 64 << 20;
/// Number of files of a full ring. Removing one file forgets one part.
const PARTS: u64 = 16;
/// Smallest size in bytes: a file still holds a few records.
pub const SMALLEST_SIZE: u64 = 1 << 20;
const ENDING: &str = ".jsonl";

/// Writes the history. Each agent has one.
#[derive(Debug)]
pub struct HistoryRing {
    folder: PathBuf,
    readers: Readers,
    run: String,
    size: u64,
    current: Option<OpenSegment>,
    /// Files of this run so far.
    files: u64,
}

#[derive(Debug)]
struct OpenSegment {
    file: File,
    name: OsString,
    length: u64,
}

impl HistoryRing {
    /// Opens the history, and makes its folder for `readers` if it is missing. Files of earlier runs stay while there is room.
    pub fn open(folder: &Path, readers: Readers, run: &str, size: u64) -> io::Result<HistoryRing> {
        Folder::create(folder, readers)?.keep_private(is_segment)?;
        let (folder, run, size) = (folder.to_owned(), run.to_owned(), size.max(SMALLEST_SIZE));
        let mut ring = HistoryRing { folder, readers, run, size, current: None, files: 0 };
        // Fails now rather than at the first drop.
        ring.current = Some(ring.next()?);
        Ok(ring)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Appends whole lines. After an error none of them is in the ring.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let full = self.size / PARTS;
        let current = match self.current.take() {
            Some(current) if current.length < full && self.is_in_place(&current)? => current,
            _ => self.next()?,
        };
        let current = self.current.insert(current);
        let written = current.file.write_all(lines);
        if let Err(error) = written {
            // The file system is full or gone. The next call tries a new file, so no line follows half a line.
            let _ = current.file.set_len(current.length);
            self.current = None;
            return Err(error);
        }
        current.length += lines.len() as u64;
        Ok(())
    }

    /// Returns false if the folder or the file was removed.
    fn is_in_place(&self, current: &OpenSegment) -> io::Result<bool> {
        storage::still_names(&self.folder.join(&current.name), &current.file)
    }

    fn next(&mut self) -> io::Result<OpenSegment> {
        let folder = Folder::create(&self.folder, self.readers)?;
        self.make_room(&folder)?;
        self.files += 1;
        let name = format!("{:013}-{}-{:06}{ENDING}", Timestamp::now().as_millisecond(), self.run, self.files);
        let name = OsString::from(name);
        Ok(OpenSegment { file: folder.create_new(&name)?, name, length: 0 })
    }

    /// Removes the oldest files until one more fits.
    fn make_room(&self, folder: &Folder) -> io::Result<()> {
        let segments = segments(folder)?;
        let mut total: u64 = segments.iter().map(|segment| segment.length).sum();
        for segment in &segments {
            if total + self.size / PARTS <= self.size {
                break;
            }
            if self.current.as_ref().is_some_and(|current| current.name == segment.name) {
                continue;
            }
            folder.remove(&segment.name)?;
            total -= segment.length;
        }
        Ok(())
    }
}

/// One file of the ring.
#[derive(Debug)]
pub struct Segment {
    pub name: OsString,
    pub length: u64,
    pub modified: SystemTime,
}

/// `MILLISECONDS-RUN-NUMBER.jsonl`.
fn is_segment(name: &OsStr) -> bool {
    let mut parts = name.to_str().and_then(|name| name.strip_suffix(ENDING)).unwrap_or_default().split('-');
    let is_number = |part: Option<&str>| part.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    is_number(parts.next()) && parts.next().is_some() && is_number(parts.next()) && parts.next().is_none()
}

/// Returns the ring's files, oldest first.
pub fn segments(folder: &Folder) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for (name, stat) in folder.files()?.into_iter().filter(|(name, _)| is_segment(name)) {
        // A time before 1970 is as good as 0.
        let (seconds, nanos) = (stat.st_mtime.try_into().unwrap_or(0), stat.st_mtime_nsec.try_into().unwrap_or(0));
        let modified = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        segments.push(Segment { name, length: stat.st_size.try_into().unwrap_or(0), modified });
    }
    segments.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(segments)
}

/// Returns the time of the oldest record.
pub fn reaches_back_to(folder: &Folder) -> io::Result<Option<Timestamp>> {
    for segment in segments(folder)? {
        let Ok(file) = folder.read(&segment.name) else { continue };
        let mut line = Vec::new();
        BufReader::new(io::Read::take(file, crate::record::lines::LINE_AT_MOST as u64)).read_until(b'\n', &mut line)?;
        if let Some(record) = crate::record::read::read(line.trim_ascii_end()) {
            return Ok(Some(record.time));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
