//! Checks whether a log accounts for every packet. Pure: records in, findings out.
//!
//! An agent numbers the records of a run without gaps, and its status records say how many packets it has read, written and lost. So a log
//! can be checked by itself: no number may be missing, the drop records before a status must hold the packets that the status counts, and
//! every lost packet must be in a `loss` record.

mod report;
mod run;

use std::collections::HashMap;
use std::fmt::Display;

pub use report::{AuditReport, Completeness, RunReport};
use run::Run;

use crate::record::read::RecordView;

/// Runs that are kept apart; records of more are counted.
const MAX_RUNS: usize = 100_000;

/// The state of the check after some records.
#[derive(Debug, Default)]
pub struct Audit {
    runs: Vec<Run>,
    by_id: HashMap<String, usize>,
    /// Lines that are not records, with the first one's place and what is wrong with it.
    broken: u64,
    first_broken: Option<String>,
    /// Logs that could not be read to their end, and why.
    unread: Vec<String>,
    records: u64,
    beyond: u64,
}

impl Audit {
    /// Adds a record. The records of a run come in the order of their numbers, except for a few late ones and duplicates.
    pub fn record(&mut self, place: &impl Display, record: &RecordView<'_>) {
        let seq = match check(record) {
            Ok(seq) => seq,
            Err(why) => return self.broken(place, &why),
        };
        self.records += 1;
        let at = match self.by_id.get(&*record.run) {
            Some(at) => *at,
            None if self.runs.len() == MAX_RUNS => {
                self.beyond += 1;
                return;
            }
            None => {
                self.by_id.insert(record.run.to_string(), self.runs.len());
                self.runs.push(Run::starting_with(record, seq));
                self.runs.len() - 1
            }
        };
        self.runs[at].add(record, seq);
    }

    /// Adds a line that is not a record, or that cannot be accounted for.
    pub fn broken(&mut self, place: &impl Display, why: &impl Display) {
        self.broken += 1;
        self.first_broken.get_or_insert_with(|| format!("{place}: {why}"));
    }

    /// Adds the reason why a log could not be read to its end.
    pub fn unread(&mut self, why: String) {
        self.unread.push(why);
    }

    pub fn report(self) -> AuditReport {
        report::of(self)
    }
}

/// Returns the record's number, or what the accounting lacks. The reader is lenient; the accounting cannot be.
fn check(record: &RecordView<'_>) -> Result<u64, &'static str> {
    let seq = record.seq.filter(|_| !record.run.is_empty()).ok_or("a record without `run` or `seq`")?;
    match &*record.kind {
        "drop" if record.count.is_none() => Err("a drop without `count`"),
        "status" if record.totals.is_none() => Err("a status without `totals` that this version of netpol-trace knows"),
        "status" if run::phase(record).is_none() => {
            Err("a status with a `phase` that this version of netpol-trace does not know")
        }
        _ => Ok(seq),
    }
}

/// Returns the packets in a record, as the agent's totals count them.
fn packets(record: &RecordView<'_>) -> u64 {
    if &*record.kind == "drop" { record.packets() } else { 0 }
}

/// Returns the packets that a record declares lost: an exact count, which the totals include, and an estimate, which they do not.
fn declared(record: &RecordView<'_>) -> (u64, u64) {
    match record.count {
        Some(count) if &*record.kind == "loss" && record.of.is_empty() => {
            if record.estimate {
                (0, count)
            } else {
                (count, 0)
            }
        }
        _ => (0, 0),
    }
}

/// Returns true if the record declares time in which nobody counted.
fn is_gap(record: &RecordView<'_>) -> bool {
    &*record.kind == "loss" && (record.count.is_none() || &*record.stage == "not_attached")
}

#[cfg(test)]
mod tests;
