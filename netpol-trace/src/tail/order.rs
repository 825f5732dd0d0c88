//! Sorts records by time, any number of them in bounded memory: what does not fit is sorted on disk.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use jiff::Timestamp;

use super::line::ParsedLine;
use crate::record::read::{self, RecordView};

/// Bytes of records that are kept in memory.
const IN_MEMORY: usize = 128 << 20;

/// Gathers records and returns them sorted by time. Records of the same time keep their order.
#[derive(Debug)]
pub struct Sorter {
    records: Vec<ParsedLine>,
    /// What `records` take, about.
    bytes: usize,
    /// Sorted parts on disk.
    parts: Vec<File>,
    at_most: usize,
    pub newest: Option<Timestamp>,
}

impl Default for Sorter {
    fn default() -> Sorter {
        Sorter::with_memory(IN_MEMORY)
    }
}

impl Sorter {
    fn with_memory(at_most: usize) -> Sorter {
        Sorter { records: Vec::new(), bytes: 0, parts: Vec::new(), at_most, newest: None }
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.parts.is_empty()
    }

    pub fn push(&mut self, record: ParsedLine) -> io::Result<()> {
        // The lists and maps of a view are about as long as their text.
        let bytes = 2 * record.line().len() + size_of::<RecordView<'_>>();
        if self.bytes + bytes > self.at_most && !self.records.is_empty() {
            self.spill()?;
        }
        self.newest = self.newest.max(Some(record.record().time));
        self.bytes += bytes;
        self.records.push(record);
        Ok(())
    }

    /// Calls `each` for all records and their lines in order, and empties the sorter.
    pub fn drain(&mut self, mut each: impl FnMut(&RecordView<'_>, &[u8]) -> io::Result<()>) -> io::Result<()> {
        self.newest = None;
        if self.parts.is_empty() {
            return self.sorted().iter().try_for_each(|record| each(record.record(), record.line()));
        }
        self.spill()?;
        merge(std::mem::take(&mut self.parts), |line| match read::read(line) {
            Some(record) => each(&record, line),
            None => Ok(()),
        })
    }

    fn sorted(&mut self) -> Vec<ParsedLine> {
        self.bytes = 0;
        let mut records = std::mem::take(&mut self.records);
        records.sort_by_key(|record| record.record().time);
        records
    }

    fn spill(&mut self) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, unnamed_file()?);
        for record in self.sorted() {
            out.write_all(&record.record().time.as_nanosecond().to_le_bytes())?;
            out.write_all(&(record.line().len() as u64).to_le_bytes())?;
            out.write_all(record.line())?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.parts.push(file);
        Ok(())
    }
}

/// Opens a temporary file without a name: nobody else sees it, and it ends with the process.
fn unnamed_file() -> io::Result<File> {
    let folder = std::env::temp_dir();
    let failed = |error: io::Error| {
        let what = "cannot sort the records that do not fit into memory (set TMPDIR to another folder)";
        io::Error::new(error.kind(), format!("{}: {what}: {error}", folder.display()))
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_TMPFILE).open(&folder).map_err(failed)
}

/// Merges sorted parts.
fn merge(parts: Vec<File>, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut parts: Vec<_> = parts.into_iter().map(|file| BufReader::with_capacity(1 << 18, file)).collect();
    let mut next = BinaryHeap::new();
    let mut lines = vec![Vec::new(); parts.len()];
    for (at, (part, line)) in parts.iter_mut().zip(&mut lines).enumerate() {
        next.extend(read_line(part, line)?.map(|time| Reverse((time, at))));
    }
    while let Some(Reverse((_, at))) = next.pop() {
        let (Some(part), Some(line)) = (parts.get_mut(at), lines.get_mut(at)) else { continue };
        each(line)?;
        next.extend(read_line(part, line)?.map(|time| Reverse((time, at))));
    }
    Ok(())
}

/// Reads the next line of a part. Returns its time.
fn read_line(part: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<Option<i128>> {
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

    fn sorted(memory: usize) -> Vec<(Timestamp, u64)> {
        let mut sorter = Sorter::with_memory(memory);
        for n in 0..1000_i64 {
            // Two records of each time: the first stays first.
            let time = Timestamp::from_second((n * 7919) % 500).unwrap();
            let line = format!(r#"{{"schema":"netpol-trace/v1","time":"{time}","kind":"loss","count":{n}}}"#);
            sorter.push(ParsedLine::parse(line.as_bytes()).unwrap()).unwrap();
        }
        assert_eq!(sorter.parts.is_empty(), memory == usize::MAX);
        let mut records = Vec::new();
        let mut add = |record: &RecordView<'_>, line: &[u8]| {
            assert_eq!(read::read(line).as_ref(), Some(record));
            records.push((record.time, record.count.unwrap()));
            Ok(())
        };
        sorter.drain(&mut add).unwrap();
        assert!(sorter.is_empty());
        records
    }

    #[test]
    fn records_come_in_the_order_of_time_whether_they_fit_or_not() {
        let in_memory = sorted(usize::MAX);
        assert_eq!(in_memory.len(), 1000);
        assert!(in_memory.is_sorted());
        assert_eq!(sorted(20_000), in_memory);
    }
}
