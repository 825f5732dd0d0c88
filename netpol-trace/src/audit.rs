//! Does a log account for every packet? Pure: lines in, findings out.
//!
//! A run's records are numbered without gaps, and its statuses say how many packets the agent dealt with. So a log can be
//! checked by itself: no number may be missing, the packets in the records before a status must be the packets that the
//! status counts, and what was lost must be in a `loss` record.

mod report;
mod run;

use std::collections::HashMap;

pub use report::{AuditReport, Completeness, RunReport};
use run::Run;

use crate::model::LossStage;
use crate::record::{Body, Record};

/// Runs that are kept apart; records of more are counted.
const MAX_RUNS: usize = 100_000;

/// What is known of a log so far.
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
    /// Takes a record; those of a run come in the order of their numbers, but for a few that are late or come twice.
    pub fn record(&mut self, record: &Record) {
        self.records += 1;
        let at = match self.by_id.get(&*record.run) {
            Some(at) => *at,
            None if self.runs.len() == MAX_RUNS => {
                self.beyond += 1;
                return;
            }
            None => {
                self.by_id.insert(record.run.to_string(), self.runs.len());
                self.runs.push(Run::begins(record));
                self.runs.len() - 1
            }
        };
        self.runs[at].take(record);
    }

    /// Takes a line that is not a record.
    pub fn broken(&mut self, place: &str, why: &str) {
        self.broken += 1;
        self.first_broken.get_or_insert_with(|| format!("{place}: {why}"));
    }

    /// Takes the reason why a log could not be read to its end.
    pub fn unread(&mut self, why: String) {
        self.unread.push(why);
    }

    /// What the log says, all in all.
    pub fn report(self) -> AuditReport {
        report::of(self)
    }
}

/// Packets in a record, as the books count them.
fn packets(record: &Record) -> u64 {
    match &record.body {
        Body::Drop(drop) => drop.count,
        _ => 0,
    }
}

/// Packets that a record declares lost: exact ones, which the books know, and estimates, which they leave out.
fn declared(record: &Record) -> (u64, u64) {
    match &record.body {
        Body::Loss(loss) if loss.of.is_none() => match (loss.count, loss.estimate) {
            (Some(count), false) => (count, 0),
            (Some(count), true) => (0, count),
            (None, _) => (0, 0),
        },
        _ => (0, 0),
    }
}

/// Whether the record declares time in which nobody counted.
fn is_gap(record: &Record) -> bool {
    matches!(&record.body, Body::Loss(loss) if loss.count.is_none() || loss.stage == LossStage::NotAttached)
}

#[cfg(test)]
mod tests;
