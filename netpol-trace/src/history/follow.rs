//! The reading end: what is in the ring, and then what comes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::SystemTime;

use super::segments;
use crate::record::lines::LineSplitter;
use crate::storage::{Folder, StorageError};

/// Octets that are read at once.
const READ: usize = 256 * 1024;

/// Reads the ring from its beginning, and goes on where it ended.
#[derive(Debug)]
pub struct Follower {
    folder: Folder,
    /// Files that hold nothing newer are not opened.
    since: Option<SystemTime>,
    open: BTreeMap<OsString, OpenFile>,
    octets: Vec<u8>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    at: u64,
    splitter: LineSplitter,
}

impl Follower {
    pub fn new(folder: Folder, since: Option<SystemTime>) -> Follower {
        Follower { folder, since, open: BTreeMap::new(), octets: vec![0; READ] }
    }

    /// Reads the next lines and hands them over, whole lines with their ends, some at a time. `Ok(false)`: there was nothing
    /// new. Files are kept open, so that one that is removed while it is read is still read to its end.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        let segments = segments(&self.folder)?;
        for segment in &segments {
            if self.open.contains_key(&segment.name) || self.since.is_some_and(|since| segment.modified < since) {
                continue;
            }
            match self.folder.read(&segment.name) {
                Ok(file) => drop(
                    self.open.insert(segment.name.clone(), OpenFile { file, at: 0, splitter: LineSplitter::default() }),
                ),
                Err(StorageError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut lines = Vec::new();
        let mut any = false;
        for open in self.open.values_mut() {
            open.file.seek(SeekFrom::Start(open.at))?;
            let read = open.file.read(&mut self.octets)?;
            if read == 0 {
                continue;
            }
            any = true;
            open.at += read as u64;
            open.splitter.cut(self.octets.get(..read).unwrap_or_default(), |line| {
                lines.extend_from_slice(line);
                lines.push(b'\n');
            });
            // One piece at a time: a reader that is slow must not make this grow.
            break;
        }
        if !lines.is_empty() {
            each(&lines);
        }
        if !any {
            self.open.retain(|name, _| segments.iter().any(|segment| segment.name == *name));
        }
        Ok(any)
    }
}
