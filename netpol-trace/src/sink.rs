//! Where records go: stdout or a file, one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// A sink of lines. Lines are gathered and written with one call; [`Lines::flush`] says how many got out.
#[derive(Debug)]
pub struct Lines {
    target: Target,
    buffer: Vec<u8>,
    /// Lines in `buffer`.
    pending: u64,
}

#[derive(Debug)]
enum Target {
    Stdout,
    File { path: PathBuf, file: File },
}

/// Why lines did not get out.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The reader went away: not an error, the end.
    #[error("the reader of the output has gone")]
    Closed,
    #[error("{name}: {error}")]
    Write { name: String, error: io::Error },
}

/// Octets after which gathered lines are written at once.
const GATHER: usize = 64 * 1024;

impl Lines {
    pub fn stdout() -> Lines {
        Lines { target: Target::Stdout, buffer: Vec::new(), pending: 0 }
    }

    /// Appends to `path`, which is made if need be. A last line without an end (a crash, a full disk) is ended first, so that it
    /// can't swallow the next.
    pub fn file(path: &Path) -> io::Result<Lines> {
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let mut lines = Lines { target: Target::Stdout, buffer: Vec::new(), pending: 0 };
        if file.metadata()?.is_file() && file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                lines.buffer.push(b'\n');
            }
        }
        lines.target = Target::File { path: path.to_owned(), file };
        Ok(lines)
    }

    pub fn name(&self) -> String {
        match &self.target {
            Target::Stdout => "stdout".into(),
            Target::File { path, .. } => path.display().to_string(),
        }
    }

    /// The buffer to which one whole line is appended; then call [`Lines::appended`].
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Counts one line; true when it is time to flush.
    pub fn appended(&mut self) -> bool {
        self.pending += 1;
        self.buffer.len() >= GATHER
    }

    /// Writes what has gathered.
    ///
    /// # Errors
    /// What could not be written is given up: the caller counts the lines since the last success as lost.
    pub fn flush(&mut self) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = match &mut self.target {
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&self.buffer).and_then(|()| out.flush())
            }
            Target::File { file, .. } => write_whole(file, &self.buffer),
        };
        self.buffer.clear();
        self.pending = 0;
        result.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => SinkError::Closed,
            _ => SinkError::Write { name: self.name(), error },
        })
    }

    /// Whether the reader of a pipe has gone, found out without writing.
    pub fn is_closed(&self) -> bool {
        let fd: RawFd = match &self.target {
            Target::Stdout => io::stdout().as_raw_fd(),
            Target::File { file, .. } => file.as_raw_fd(),
        };
        let mut poll = libc::pollfd { fd, events: 0, revents: 0 };
        // SAFETY: one valid pollfd, no waiting.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 && poll.revents & (libc::POLLERR | libc::POLLNVAL) != 0 }
    }
}

/// All of `bytes` or, as far as the file system allows, none: a half-written line is cut off again.
fn write_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let metadata = file.metadata()?;
    let before = metadata.len();
    file.write_all(bytes).inspect_err(|_| {
        if metadata.is_file() {
            let _ = file.set_len(before);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_line_is_ended_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "{\"half\":").unwrap();
        let mut lines = Lines::file(&path).unwrap();
        lines.buffer().extend(b"{}\n");
        lines.appended();
        lines.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\":\n{}\n");
    }

    #[test]
    fn a_full_disk_leaves_no_half_line() {
        let Ok(mut lines) = Lines::file(Path::new("/dev/full")) else {
            eprintln!("skipped: no /dev/full here");
            return;
        };
        lines.buffer().extend(b"{}\n");
        lines.appended();
        assert!(matches!(lines.flush(), Err(SinkError::Write { .. })));
        assert!(lines.buffer().is_empty());
    }
}
