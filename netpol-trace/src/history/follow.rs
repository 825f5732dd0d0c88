//! Reads the history: the records in it, then new ones.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::SystemTime;

use super::segments;
use crate::record::lines::LineSplitter;
use crate::storage::{Folder, StorageError};

/// Bytes of one read.
const READ: usize = 256 * 1024;

/// Reads the history from its beginning; each call continues where the last one ended.
#[derive(Debug)]
pub struct Follower {
    folder: Folder,
    /// Files that were last written before are not opened.
    since: Option<SystemTime>,
    open: BTreeMap<OsString, OpenFile>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    at: u64,
    splitter: LineSplitter,
}

impl Follower {
    pub fn new(folder: Folder, since: Option<SystemTime>) -> Follower {
        Follower { folder, since, open: BTreeMap::new(), bytes: vec![0; READ] }
    }

    /// Reads some of the next lines, and calls `each` for each of them, without its newline. Returns false if there was nothing new. Keeps
    /// files open, so that a file that is removed while it is read is still read to its end.
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
        let mut any = false;
        for open in self.open.values_mut() {
            open.file.seek(SeekFrom::Start(open.at))?;
            let read = open.file.read(&mut self.bytes)?;
            if read == 0 {
                continue;
            }
            any = true;
            open.at += read as u64;
            open.splitter.split(self.bytes.get(..read).unwrap_or_default(), &mut each);
            // One read at a time: memory stays bounded, however slow the receiver is.
            break;
        }
        if !any {
            self.open.retain(|name, _| segments.iter().any(|segment| segment.name == *name));
        }
        Ok(any)
    }
}
