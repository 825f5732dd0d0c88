//! Writes a JSON object per line to a file, and rotates the file by size and age.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::queue::Patience;
use super::stdout::from_io;
use super::{Delivery, Sink};
use crate::record::Record;
use crate::record::format;
use crate::record::format::Format;
use crate::storage::{self, Folder, Readers};

/// When to rotate a file. The default is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// The most bytes of a file; only a single longer line exceeds it.
    pub max_size: Option<u64>,
    /// The greatest age of a file's first record.
    pub max_age: Option<Duration>,
    /// The number of older files to keep; `PATH.1` is the newest.
    pub keep: u32,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation { max_size: None, max_age: None, keep: 5 }
    }
}

#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    /// Its name in its folder.
    name: OsString,
    file: File,
    format: Format,
    rotation: Rotation,
    readers: Readers,
    /// The file's size in bytes.
    length: u64,
    /// When its first record was written.
    since: SystemTime,
    buffer: Vec<u8>,
}

impl FileSink {
    /// Opens `path` for appending, or creates it for `readers`. If the last line has no end (after a crash or on a full disk), ends it first, so
    /// that the next record has a line of its own.
    pub fn open(path: &Path, format: Format, rotation: Rotation, readers: Readers) -> io::Result<FileSink> {
        let name = path.file_name().ok_or_else(|| io::Error::other(format!("{} names no file", path.display())))?;
        let mut file = folder(path, readers)?.append(name)?;
        let metadata = file.metadata()?;
        let mut lines = FileSink {
            path: path.to_owned(),
            name: name.to_owned(),
            format,
            rotation,
            readers,
            length: metadata.len(),
            since: metadata.created().or_else(|_| metadata.modified()).unwrap_or_else(|_| SystemTime::now()),
            buffer: Vec::new(),
            file: file.try_clone()?,
        };
        if lines.length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                lines.buffer.push(b'\n');
                lines.write_out()?;
            }
        } else {
            lines.since = SystemTime::now();
        }
        Ok(lines)
    }

    /// Opens `path` again if it no longer names the open file: the file or its folder was renamed or removed.
    fn follow_path(&mut self) -> io::Result<()> {
        if !storage::still_names(&self.path, &self.file)? {
            *self = FileSink::open(&self.path, self.format, self.rotation, self.readers)?;
            tracing::info!(path = %self.path.display(), "the output's file was removed or renamed: records go to a new file from now on");
        }
        Ok(())
    }

    /// Writes the buffer. After an error truncates the file to its old size, so that no line is half written.
    fn write_out(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = self.file.write_all(&self.buffer);
        match &result {
            Ok(()) => self.length += self.buffer.len() as u64,
            Err(_) => drop(self.file.set_len(self.length)),
        }
        self.buffer.clear();
        result
    }

    fn is_full(&self, more: u64) -> bool {
        let filled = self.length + self.buffer.len() as u64;
        let old = || self.since.elapsed().is_ok_and(|age| self.rotation.max_age.is_some_and(|most| age >= most));
        filled > 0 && (self.rotation.max_size.is_some_and(|most| filled + more > most) || old())
    }

    /// Replaces the file by an empty one. Exchanges the two in one step if the file system can, so that `path` names a file at every moment.
    fn rotate(&mut self) -> io::Result<()> {
        let folder = folder(&self.path, self.readers)?;
        let numbered = |suffix: &dyn std::fmt::Display| numbered(&self.name, suffix);
        let (fresh, first) = (numbered(&"new"), numbered(&1));
        // Left by a crash in an earlier rotation.
        folder.remove(&fresh)?;
        let file = folder.create_new(&fresh)?;
        for number in (1..self.rotation.keep).rev() {
            match folder.rename(&numbered(&number), &numbered(&(number + 1))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if folder.exchange(&fresh, &self.name).is_ok() {
            if let Err(error) = folder.rename(&fresh, &first) {
                let _ = folder.exchange(&fresh, &self.name);
                let _ = folder.remove(&fresh);
                return Err(error);
            }
        } else {
            folder.rename(&self.name, &first)?;
            folder.rename(&fresh, &self.name)?;
        }
        self.file = file;
        self.length = 0;
        self.since = SystemTime::now();
        Ok(())
    }
}

/// Opens the folder of a file.
fn folder(path: &Path, readers: Readers) -> io::Result<Folder> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Folder::open(above, readers)?)
}

/// `log.1`: in the same folder, so that a rename stays within the file system.
fn numbered(name: &OsStr, suffix: &dyn std::fmt::Display) -> OsString {
    let mut name = name.to_owned();
    name.push(format!(".{suffix}"));
    name
}

impl Sink for FileSink {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn format(&self) -> &'static str {
        self.format.as_str()
    }

    fn deliver(&mut self, records: &[Arc<Record>], _: Patience<'_>) -> Delivery {
        let mut out = 0;
        let mut line = Vec::new();
        let mut write = || -> io::Result<()> {
            self.follow_path()?;
            for (at, record) in records.iter().enumerate() {
                line.clear();
                format::line(self.format, record, &mut line)?;
                if self.is_full(line.len() as u64) {
                    self.write_out()?;
                    out = at;
                    self.rotate()?;
                }
                self.buffer.extend_from_slice(&line);
            }
            self.write_out()?;
            out = records.len();
            Ok(())
        };
        let result = write();
        self.buffer.clear();
        Delivery { delivered: out, rejected: 0, error: result.err().map(|error| from_io(self.name(), error)) }
    }
}

#[cfg(test)]
mod tests;
