//! Splits a stream of bytes into lines. A line longer than any record is skipped, not kept.

use std::io::{self, Read};
use std::ops::ControlFlow;

/// A longer line is no record: the agent's are under 16 KiB.
pub const LINE_AT_MOST: usize = 1 << 20;
const CHUNK: usize = 1 << 20;
/// Stands for a line longer than [`LINE_AT_MOST`], so that it is counted and has its number. It is not a record.
pub const TOO_LONG: &[u8] = b"(a line longer than 1 MiB)";

/// Splits a stream of bytes into lines. Keeps the bytes after the last newline until the line's end comes.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
    /// In the middle of a line that is too long.
    skipping: bool,
}

impl LineSplitter {
    /// Calls `each` for every complete line of `bytes`, without its newline, and with [`TOO_LONG`] for a line that is.
    pub fn split(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(at) = memchr::memchr(b'\n', bytes) {
            let (line, after) = bytes.split_at(at);
            bytes = after.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) {
                each(TOO_LONG);
            } else if self.rest.is_empty() {
                each(line);
            } else {
                self.rest.extend_from_slice(line);
                each(&self.rest);
                self.rest.clear();
            }
        }
        if self.skipping {
            return;
        }
        self.rest.extend_from_slice(bytes);
        if self.rest.len() > LINE_AT_MOST {
            self.rest.clear();
            self.skipping = true;
        }
    }

    /// Calls `each` for the last line, if it has no newline.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if self.skipping {
            each(TOO_LONG);
        } else if !self.rest.is_empty() {
            each(&self.rest);
        }
        self.rest.clear();
        self.skipping = false;
    }
}

/// Whole lines in one allocation: what one thread has split, another takes line by line.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Where each line ends in `bytes`.
    ends: Vec<usize>,
}

impl Lines {
    pub fn push(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.ends.push(self.bytes.len());
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| self.bytes.get(*start..*end).unwrap_or_default())
    }
}

/// Calls `each` for all lines of `input`, until it breaks. Reads in large chunks.
pub fn for_each(mut input: impl Read, mut each: impl FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
    let mut splitter = LineSplitter::default();
    let mut chunk = vec![0; CHUNK];
    let mut go_on = ControlFlow::Continue(());
    let mut each = |line: &[u8]| {
        if go_on.is_continue() {
            go_on = each(line);
        }
        go_on
    };
    loop {
        let read = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut stop = false;
        splitter.split(chunk.get(..read).unwrap_or_default(), |line| stop |= each(line).is_break());
        if stop {
            return Ok(());
        }
    }
    splitter.finish(|line| {
        let _ = each(line);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        for piece in pieces {
            splitter.split(piece, |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        }
        splitter.finish(|line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        assert_eq!(split(&[b"a\nb", b"c\n", b"\nd"]), ["a", "bc", "", "d"]);
    }

    #[test]
    fn a_line_that_is_too_long_keeps_its_place() {
        let long = vec![b'x'; LINE_AT_MOST + 1];
        let too_long = std::str::from_utf8(TOO_LONG).unwrap();
        assert_eq!(split(&[b"a\n", &long, &long, b"tail\nb\n"]), ["a", too_long, "b"]);
        assert_eq!(split(&[b"a\n", &long]), ["a", too_long]);
    }

    #[test]
    fn lines_of_a_batch_come_back_one_by_one() {
        let mut lines = Lines::default();
        assert!(lines.is_empty() && lines.iter().next().is_none());
        [&b"a"[..], b"", b"bc"].iter().for_each(|line| lines.push(line));
        assert_eq!(lines.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bc"]);
    }
}
