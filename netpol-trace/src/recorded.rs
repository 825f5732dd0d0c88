//! Logs of agents as input: files, patterns, archives, histories and standard input, for every subcommand that reads records.

pub mod connections;
pub mod input;
pub mod unpack;

use std::fmt;
use std::io::{self, Read};
use std::ops::ControlFlow;

use crate::record::lines;
use crate::record::magic;
use crate::record::read::{RecordView, read};

/// How many lines of one log are records, and what the first other line is.
#[derive(Debug, Default)]
pub struct LogCounts {
    /// All lines so far, empty ones included: the number of the latest line.
    pub lines: u64,
    records: u64,
    not_records: u64,
    first_not_record: Option<String>,
}

impl LogCounts {
    pub fn empty_line(&mut self) {
        self.lines += 1;
    }

    pub fn record(&mut self) {
        self.lines += 1;
        self.records += 1;
    }

    pub fn not_a_record(&mut self, line: &[u8]) {
        self.lines += 1;
        self.not_records += 1;
        self.first_not_record.get_or_insert_with(|| magic::line(line));
    }

    /// Returns what is wrong with a log that was read to its end and in which no line is a record.
    pub fn problem(&self, input: &input::LogInput) -> Option<input::LogError> {
        if self.records > 0 { None } else { input.without_record(self.not_records, self.first_not_record.as_deref()) }
    }
}

/// A line that is not a record; written out, it says what the line is instead.
#[derive(Debug, Clone, Copy)]
pub struct NotARecord<'l>(&'l [u8]);

impl fmt::Display for NotARecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&magic::line(self.0))
    }
}

/// Calls `take` with every line that is not empty, by its number. Returns what the log's lines are, also after an error.
pub fn each(
    input: impl Read,
    mut take: impl FnMut(u64, Result<RecordView<'_>, NotARecord<'_>>),
) -> (LogCounts, io::Result<()>) {
    let mut counts = LogCounts::default();
    let result = lines::for_each(input, |line| {
        match read(line) {
            Some(record) => {
                counts.record();
                take(counts.lines, Ok(record));
            }
            None if line.trim_ascii().is_empty() => counts.empty_line(),
            None => {
                counts.not_a_record(line);
                take(counts.lines, Err(NotARecord(line)));
            }
        }
        ControlFlow::Continue(())
    });
    (counts, result)
}
