//! One run of an agent, as its records tell it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{declared, is_gap, packets};
use crate::model::{Phase, Totals};
use crate::record::{Body, Record};

/// Ranges of missing numbers that are kept; more are only counted.
const MAX_MISSING: usize = 10_000;
/// Findings that are kept in words.
const MAX_WRONG: usize = 20;

#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: String,
    pub(super) node: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) first_time: Timestamp,
    pub(super) last_time: Timestamp,
    pub(super) records: u64,
    /// The first number of the log, and the highest so far.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Missing numbers, as first → last of each range.
    missing: BTreeMap<u64, u64>,
    /// Numbers missing beyond the ranges kept.
    missing_beyond: u64,
    pub(super) doubles: u64,
    pub(super) tally: PacketSums,
    /// The latest status, and what the records before it hold.
    pub(super) checkpoint: Option<Checkpoint>,
    /// Where a log that begins inside a run can be checked from.
    baseline: Option<(Totals, PacketSums)>,
    pub(super) stopped: bool,
    pub(super) previous_run: Option<String>,
    /// Declared time without a count.
    pub(super) gaps: Vec<String>,
    pub(super) wrong: Vec<String>,
    pub(super) more_wrong: u64,
}

/// Packets in records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PacketSums {
    pub(super) recorded: u64,
    pub(super) declared: u64,
    pub(super) estimated: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoint {
    pub(super) seq: u64,
    pub(super) totals: Totals,
    /// Of the records before it.
    pub(super) tally: PacketSums,
    pub(super) phase: Phase,
}

impl Run {
    pub(super) fn begins(record: &Record) -> Run {
        Run {
            id: record.run.to_string(),
            node: record.node.as_deref().map(str::to_owned),
            cluster: record.cluster.as_deref().map(str::to_owned),
            first_time: record.time,
            last_time: record.time,
            records: 0,
            first: record.seq,
            last: record.seq.saturating_sub(1),
            missing: BTreeMap::new(),
            missing_beyond: 0,
            doubles: 0,
            tally: PacketSums::default(),
            checkpoint: None,
            baseline: None,
            stopped: false,
            previous_run: None,
            gaps: Vec::new(),
            wrong: Vec::new(),
            more_wrong: 0,
        }
    }

    pub(super) fn take(&mut self, record: &Record) {
        let late = match self.number(record.seq) {
            SeqPosition::Next => false,
            SeqPosition::Late => true,
            SeqPosition::Double => {
                self.doubles += 1;
                return;
            }
        };
        self.records += 1;
        self.last_time = self.last_time.max(record.time);
        let (exact, estimated) = declared(record);
        let add = |tally: &mut PacketSums| {
            tally.recorded = tally.recorded.saturating_add(packets(record));
            tally.declared = tally.declared.saturating_add(exact);
            tally.estimated = tally.estimated.saturating_add(estimated);
        };
        add(&mut self.tally);
        if let Some(checkpoint) = self.checkpoint.as_mut().filter(|c| late && record.seq < c.seq) {
            add(&mut checkpoint.tally);
        }
        if is_gap(record) {
            self.gap(record);
        }
        if let Body::Status(status) = &record.body
            && !late
        {
            self.previous_run = self.previous_run.take().or_else(|| status.previous_run.clone());
            if self.stopped {
                self.wrong(format!("record {}: a status after `stopped`", record.seq));
            }
            self.stopped |= status.phase == Phase::Stopped;
            self.status(record.seq, status.totals, status.phase);
        } else if self.stopped && !late {
            self.wrong(format!("record {}: after `stopped`", record.seq));
        }
    }

    fn number(&mut self, seq: u64) -> SeqPosition {
        if seq > self.last {
            if seq > self.last + 1 {
                self.miss(self.last + 1, seq - 1);
            }
            self.last = seq;
            return SeqPosition::Next;
        }
        let Some((from, to)) = self.missing.range(..=seq).next_back().map(|(from, to)| (*from, *to)) else {
            return SeqPosition::Double;
        };
        if seq > to {
            return SeqPosition::Double;
        }
        self.missing.remove(&from);
        if from < seq {
            self.missing.insert(from, seq - 1);
        }
        if seq < to {
            self.missing.insert(seq + 1, to);
        }
        SeqPosition::Late
    }

    fn miss(&mut self, from: u64, to: u64) {
        if self.missing.len() < MAX_MISSING {
            self.missing.insert(from, to);
        } else {
            self.missing_beyond = sum(&[self.missing_beyond, to - from, 1]);
        }
    }

    fn gap(&mut self, record: &Record) {
        let Body::Loss(loss) = &record.body else { return };
        if self.gaps.len() < MAX_WRONG {
            let to = loss.last_time.map(|to| format!(" to {to}")).unwrap_or_default();
            self.gaps.push(format!("{}: from {}{to}", loss.reason, record.time));
        }
    }

    /// A status closes what came before: nothing may be missing in its own sums, nor between it and the records.
    fn status(&mut self, seq: u64, totals: Totals, phase: Phase) {
        let agent = totals.agent;
        let Some(kernel) = totals.kernel else {
            // A later status tells; after the last one there is none.
            if phase == Phase::Stopped {
                self.wrong(format!(
                    "record {seq} (status stopped): without the kernel's counters, which couldn't be read"
                ));
            }
            return;
        };
        let at = format!("record {seq} (status {})", word(phase));
        let mut check = |what: &str, left: u64, right: u64, open: bool| {
            // While it runs, packets are between the terms as they are read; at the end none is.
            if if open { left < right } else { left != right } {
                self.wrong(format!("{at}: {what}: {left} against {right}"));
            }
        };
        let end = phase == Phase::Stopped;
        let told = sum(&[agent.written, agent.held, agent.lost]);
        check("agent: read against written + held + lost", agent.read, told, !end);
        check("kernel: seen against matched", kernel.seen.max(kernel.matched), kernel.seen, false);
        if end {
            let known = sum(&[kernel.emitted, kernel.aggregated, kernel.lost]);
            check("kernel: matched against emitted + aggregated + lost", kernel.matched, known, false);
            check("read against emitted + aggregated", agent.read, sum(&[kernel.emitted, kernel.aggregated]), false);
            check("held at the end", agent.held, 0, false);
        }
        self.checkpoint = Some(Checkpoint { seq, totals, tally: self.tally, phase });
        if self.first > 1 && self.baseline.is_none() {
            self.baseline = Some((totals, self.tally));
        }
    }

    /// Compares the latest status with the records before it; call when all have been taken.
    pub(super) fn close(&mut self) {
        let Some(Checkpoint { seq, totals, tally, phase, .. }) = self.checkpoint else { return };
        let (base, before) = match self.baseline {
            Some((base, before)) => (base, before),
            None if self.first > 1 => return,
            None => (Totals::default(), PacketSums::default()),
        };
        // In the records or declared lost: that is every packet that the agent was to tell of. It holds for each sink by
        // itself, since a sink that loses records declares them.
        let due = |totals: &Totals| {
            let Totals { kernel, agent } = totals;
            sum(&[agent.written.saturating_sub(agent.filtered), agent.lost, kernel.unwrap_or_default().lost])
        };
        let due = due(&totals).saturating_sub(due(&base));
        let recorded = tally.recorded - before.recorded;
        let declared = tally.declared - before.declared;
        // Losses are told within a second: a status in between may know of some that have no record yet.
        let untold =
            if phase == Phase::Stopped { 0 } else { sum(&[totals.agent.lost, totals.kernel.unwrap_or_default().lost]) };
        if sum(&[recorded, declared]) > due || sum(&[recorded, declared, untold]) < due {
            self.wrong(format!(
                "record {seq} (status {}): {due} packets to tell of, but the records before it hold {recorded} and declare {declared} lost",
                word(phase)
            ));
        }
    }

    pub(super) fn wrong(&mut self, what: String) {
        if self.wrong.len() < MAX_WRONG {
            self.wrong.push(what);
        } else {
            self.more_wrong += 1;
        }
    }

    /// Missing numbers, and the first few ranges of them in words.
    pub(super) fn missing(&self) -> (u64, Vec<String>) {
        let count: u64 = self.missing.iter().map(|(from, to)| to - from + 1).sum();
        let words = self.missing.iter().take(MAX_WRONG).map(|(from, to)| match from == to {
            true => from.to_string(),
            false => format!("{from} to {to}"),
        });
        (sum(&[count, self.missing_beyond]), words.collect())
    }
}

/// Counts of a log are untrusted input: their sum stays at the largest number.
pub(super) fn sum(counts: &[u64]) -> u64 {
    counts.iter().copied().fold(0, u64::saturating_add)
}

enum SeqPosition {
    Next,
    Late,
    Double,
}

pub(super) fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Started => "started",
        Phase::Running => "running",
        Phase::Stopped => "stopped",
    }
}
