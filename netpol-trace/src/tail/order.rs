//! Lines in the order of their time, of any number in bounded memory: what doesn't fit is sorted on disk.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use jiff::Timestamp;

/// Octets of lines that are kept in memory.
const IN_MEMORY: usize = 64 << 20;

/// Gathers lines and gives them back sorted by time; lines of one time in the order they came.
#[derive(Debug)]
pub struct Sorter {
    arena: Vec<u8>,
    lines: Vec<SortedLine>,
    /// Sorted parts on disk.
    parts: Vec<File>,
    at_most: usize,
    pub newest: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct SortedLine {
    time: i128,
    from: usize,
    length: usize,
}

impl Default for Sorter {
    fn default() -> Sorter {
        Sorter::with_memory(IN_MEMORY)
    }
}

impl Sorter {
    fn with_memory(at_most: usize) -> Sorter {
        Sorter { arena: Vec::new(), lines: Vec::new(), parts: Vec::new(), at_most, newest: None }
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.parts.is_empty()
    }

    pub fn push(&mut self, time: Timestamp, line: &[u8]) -> io::Result<()> {
        if self.arena.len() + line.len() > self.at_most && !self.lines.is_empty() {
            self.spill()?;
        }
        self.newest = self.newest.max(Some(time));
        self.lines.push(SortedLine { time: time.as_nanosecond(), from: self.arena.len(), length: line.len() });
        self.arena.extend_from_slice(line);
        Ok(())
    }

    /// Hands out all lines in order and is empty then.
    pub fn drain(&mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.newest = None;
        if self.parts.is_empty() {
            self.lines.sort_by_key(|line| line.time);
            for line in std::mem::take(&mut self.lines) {
                each(self.arena.get(line.from..line.from + line.length).unwrap_or_default())?;
            }
            self.arena.clear();
            return Ok(());
        }
        self.spill()?;
        merge(std::mem::take(&mut self.parts), each)
    }

    fn spill(&mut self) -> io::Result<()> {
        self.lines.sort_by_key(|line| line.time);
        let mut out = BufWriter::with_capacity(1 << 20, nameless_file()?);
        for line in self.lines.drain(..) {
            out.write_all(&line.time.to_le_bytes())?;
            out.write_all(&(line.length as u64).to_le_bytes())?;
            out.write_all(self.arena.get(line.from..line.from + line.length).unwrap_or_default())?;
        }
        self.arena.clear();
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.parts.push(file);
        Ok(())
    }
}

/// A file that nobody else sees and that ends with the process.
fn nameless_file() -> io::Result<File> {
    let folder = std::env::temp_dir();
    let failed = |error: io::Error| {
        let what = "sort records that don't fit into memory (TMPDIR names another folder)";
        io::Error::new(error.kind(), format!("{}: {what}: {error}", folder.display()))
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_TMPFILE).open(&folder).map_err(failed)
}

fn merge(parts: Vec<File>, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut parts: Vec<_> = parts.into_iter().map(|file| BufReader::with_capacity(1 << 18, file)).collect();
    let mut next = BinaryHeap::new();
    let mut lines = vec![Vec::new(); parts.len()];
    for (at, (part, line)) in parts.iter_mut().zip(&mut lines).enumerate() {
        next.extend(read(part, line)?.map(|time| Reverse((time, at))));
    }
    while let Some(Reverse((_, at))) = next.pop() {
        let (Some(part), Some(line)) = (parts.get_mut(at), lines.get_mut(at)) else { continue };
        each(line)?;
        next.extend(read(part, line)?.map(|time| Reverse((time, at))));
    }
    Ok(())
}

/// The next line of a part and its time.
fn read(part: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<Option<i128>> {
    let (mut time, mut length) = ([0; 16], [0; 8]);
    match part.read_exact(&mut time) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    part.read_exact(&mut length)?;
    line.clear();
    part.take(u64::from_le_bytes(length)).read_to_end(line)?;
    Ok(Some(i128::from_le_bytes(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(memory: usize) -> Vec<String> {
        let mut sorter = Sorter::with_memory(memory);
        for n in 0..1000_i64 {
            // Two lines each of the same time: the first stays first.
            let time = Timestamp::from_second((n * 7919) % 500).unwrap();
            sorter.push(time, format!("{:03} {n}", time.as_second()).as_bytes()).unwrap();
        }
        let mut lines = Vec::new();
        sorter
            .drain(|line| {
                lines.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            })
            .unwrap();
        assert!(sorter.is_empty());
        lines
    }

    #[test]
    fn lines_come_in_the_order_of_time_whether_they_fit_or_not() {
        let in_memory = sorted(1 << 20);
        assert_eq!(in_memory.len(), 1000);
        assert!(in_memory.is_sorted_by_key(|line| (line[..3].to_owned(), line[4..].parse::<u32>().unwrap())));
        assert_eq!(sorted(200), in_memory);
    }
}
