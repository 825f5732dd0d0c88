//! Lines out of a reader, many at a time: what is no line of reasonable length is skipped, not gathered.

use std::io::{self, Read};
use std::ops::ControlFlow;

/// A longer line is no record: the agent's are under 16 KiB.
pub const LINE_AT_MOST: usize = 1 << 20;
const CHUNK: usize = 1 << 20;
/// Handed over in place of a longer line, so that it is counted and has its number; no record.
pub const TOO_LONG: &[u8] = b"(a line longer than 1 MiB)";

/// Cuts a stream of octets into lines. What comes after the last newline waits for its end.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
    /// In the middle of a line that is too long.
    skipping: bool,
}

impl LineSplitter {
    /// Hands every complete line of `octets` to `each`, without its newline; [`TOO_LONG`] instead of one that is.
    pub fn cut(&mut self, mut octets: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(at) = memchr::memchr(b'\n', octets) {
            let (line, after) = octets.split_at(at);
            octets = after.get(1..).unwrap_or_default();
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
        self.rest.extend_from_slice(octets);
        if self.rest.len() > LINE_AT_MOST {
            self.rest.clear();
            self.skipping = true;
        }
    }

    /// The last line, if it has no newline.
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

/// All lines of `input`, in large reads.
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
        splitter.cut(chunk.get(..read).unwrap_or_default(), |line| stop |= each(line).is_break());
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

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
        for piece in pieces {
            splitter.cut(piece, |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        }
        splitter.finish(|line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        assert_eq!(cut(&[b"a\nb", b"c\n", b"\nd"]), ["a", "bc", "", "d"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_handed_over_as_such_in_its_place() {
        let long = vec![b'x'; LINE_AT_MOST + 1];
        let too_long = std::str::from_utf8(TOO_LONG).unwrap();
        assert_eq!(cut(&[b"a\n", &long, &long, b"tail\nb\n"]), ["a", too_long, "b"]);
        assert_eq!(cut(&[b"a\n", &long]), ["a", too_long]);
    }
}
