//! One run of an agent, put together from its records.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{declared, is_gap, packets};
use crate::model::{RunPhase, Totals};
use crate::record::read::RecordView;

/// Ranges of missing numbers that are kept; more are only counted.
const MAX_MISSING: usize = 10_000;
/// Findings that are kept as text; more are only counted.
const MAX_WRONG: usize = 20;

#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: String,
    pub(super) node: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) first_time: Timestamp,
    pub(super) last_time: Timestamp,
    pub(super) records: u64,
    /// The first number in the log, and the highest so far.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Ranges of missing numbers: first → last.
    missing: BTreeMap<u64, u64>,
    /// Missing numbers beyond [`MAX_MISSING`] ranges.
    missing_beyond: u64,
    pub(super) duplicates: u64,
    pub(super) sums: RecordedSums,
    /// The latest status, and the packets in the records before it.
    pub(super) checkpoint: Option<Checkpoint>,
    /// The first status of a log that begins inside a run: the check covers what comes after.
    baseline: Option<(Totals, RecordedSums)>,
    pub(super) stopped: bool,
    /// Declared time in which nobody counted.
    pub(super) gaps: Vec<String>,
    pub(super) wrong: Vec<String>,
    pub(super) more_wrong: u64,
}

/// Packets in records: in drops, declared lost with an exact count, declared lost by estimate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RecordedSums {
    pub(super) recorded: u64,
    pub(super) declared: u64,
    pub(super) estimated: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoint {
    pub(super) seq: u64,
    pub(super) totals: Totals,
    /// Of the records before it.
    pub(super) sums: RecordedSums,
    pub(super) phase: RunPhase,
}

impl Run {
    pub(super) fn starting_with(record: &RecordView<'_>, seq: u64) -> Run {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Run {
            id: record.run.to_string(),
            node: some(&record.node),
            cluster: some(&record.cluster),
            first_time: record.time,
            last_time: record.time,
            records: 0,
            first: seq,
            last: seq.saturating_sub(1),
            missing: BTreeMap::new(),
            missing_beyond: 0,
            duplicates: 0,
            sums: RecordedSums::default(),
            checkpoint: None,
            baseline: None,
            stopped: false,
            gaps: Vec::new(),
            wrong: Vec::new(),
            more_wrong: 0,
        }
    }

    pub(super) fn add(&mut self, record: &RecordView<'_>, seq: u64) {
        let late = match self.position(seq) {
            SeqPosition::Next => false,
            SeqPosition::Late => true,
            SeqPosition::Duplicate => {
                self.duplicates += 1;
                return;
            }
        };
        self.records += 1;
        self.last_time = self.last_time.max(record.time);
        let (exact, estimated) = declared(record);
        let add = |sums: &mut RecordedSums| {
            sums.recorded = sums.recorded.saturating_add(packets(record));
            sums.declared = sums.declared.saturating_add(exact);
            sums.estimated = sums.estimated.saturating_add(estimated);
        };
        add(&mut self.sums);
        if let Some(checkpoint) = self.checkpoint.as_mut().filter(|c| late && seq < c.seq) {
            add(&mut checkpoint.sums);
        }
        if is_gap(record) {
            self.gap(record);
        }
        if late {
            return;
        }
        if let Some((phase, totals)) = phase(record).zip(record.totals) {
            if self.stopped {
                self.wrong(format!("record {seq}: a status after `stopped`"));
            }
            self.stopped |= phase == RunPhase::Stopped;
            self.status(seq, totals, phase);
        } else if self.stopped {
            self.wrong(format!("record {seq}: after `stopped`"));
        }
    }

    fn position(&mut self, seq: u64) -> SeqPosition {
        if seq > self.last {
            if seq > self.last + 1 {
                self.miss(self.last + 1, seq - 1);
            }
            self.last = seq;
            return SeqPosition::Next;
        }
        let Some((from, to)) = self.missing.range(..=seq).next_back().map(|(from, to)| (*from, *to)) else {
            return SeqPosition::Duplicate;
        };
        if seq > to {
            return SeqPosition::Duplicate;
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

    fn gap(&mut self, record: &RecordView<'_>) {
        if self.gaps.len() < MAX_WRONG {
            let to = record.last_time.map(|to| format!(" to {to}")).unwrap_or_default();
            self.gaps.push(format!("{}: from {}{to}", &*record.reason, record.time));
        }
    }

    /// Checks the sums inside a status, and keeps it for [`Run::close`].
    fn status(&mut self, seq: u64, totals: Totals, phase: RunPhase) {
        let agent = totals.agent;
        let Some(kernel) = totals.kernel else {
            // A later status can have the counters. None follows the last one.
            if phase == RunPhase::Stopped {
                self.wrong(format!(
                    "record {seq} (status stopped): without the kernel's counters, which couldn't be read"
                ));
            }
            return;
        };
        let at = format!("record {seq} (status {})", name(phase));
        let mut check = |what: &str, left: u64, right: u64, open: bool| {
            // While the agent runs, packets move between the terms as they are read. At the end none does.
            if if open { left < right } else { left != right } {
                self.wrong(format!("{at}: {what}: {left} against {right}"));
            }
        };
        let end = phase == RunPhase::Stopped;
        let accounted = sum(&[agent.written, agent.held, agent.lost]);
        check("agent: read against written + held + lost", agent.read, accounted, !end);
        check("kernel: seen against matched", kernel.seen.max(kernel.matched), kernel.seen, false);
        if end {
            let known = sum(&[kernel.emitted, kernel.aggregated, kernel.lost]);
            check("kernel: matched against emitted + aggregated + lost", kernel.matched, known, false);
            check("read against emitted + aggregated", agent.read, sum(&[kernel.emitted, kernel.aggregated]), false);
            check("held at the end", agent.held, 0, false);
        }
        self.checkpoint = Some(Checkpoint { seq, totals, sums: self.sums, phase });
        if self.first > 1 && self.baseline.is_none() {
            self.baseline = Some((totals, self.sums));
        }
    }

    /// Compares the latest status with the records before it. Called after the last record.
    pub(super) fn close(&mut self) {
        let Some(Checkpoint { seq, totals, sums, phase }) = self.checkpoint else { return };
        let (base, before) = match self.baseline {
            Some((base, before)) => (base, before),
            None if self.first > 1 => return,
            None => (Totals::default(), RecordedSums::default()),
        };
        // Every packet that the agent had to report is in a record or declared lost. This holds for the log of each sink, because a sink
        // that loses records declares them.
        let due = |totals: &Totals| {
            let Totals { kernel, agent } = totals;
            sum(&[agent.written.saturating_sub(agent.filtered), agent.lost, kernel.unwrap_or_default().lost])
        };
        let due = due(&totals).saturating_sub(due(&base));
        let recorded = sums.recorded - before.recorded;
        let declared = sums.declared - before.declared;
        // The agent writes a loss record within a second. A status before it may count losses that have no record yet.
        let not_declared_yet = if phase == RunPhase::Stopped {
            0
        } else {
            sum(&[totals.agent.lost, totals.kernel.unwrap_or_default().lost])
        };
        if sum(&[recorded, declared]) > due || sum(&[recorded, declared, not_declared_yet]) < due {
            self.wrong(format!(
                "record {seq} (status {}): {due} packets to report, but the records before it hold {recorded} and declare {declared} lost",
                name(phase)
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

    /// Returns how many numbers are missing, and the first few ranges of them as text.
    pub(super) fn missing(&self) -> (u64, Vec<String>) {
        let count: u64 = self.missing.iter().map(|(from, to)| to - from + 1).sum();
        let words = self.missing.iter().take(MAX_WRONG).map(|(from, to)| match from == to {
            true => from.to_string(),
            false => format!("{from} to {to}"),
        });
        (sum(&[count, self.missing_beyond]), words.collect())
    }
}

/// Adds up counts of a log. They are untrusted input, so the sum saturates.
pub(super) fn sum(counts: &[u64]) -> u64 {
    counts.iter().copied().fold(0, u64::saturating_add)
}

/// Where a number stands among those that have come.
enum SeqPosition {
    Next,
    Late,
    Duplicate,
}

/// Returns the phase of a status; `None` for one that this version does not know, and for records of other kinds.
pub(super) fn phase(record: &RecordView<'_>) -> Option<RunPhase> {
    let known = [RunPhase::Started, RunPhase::Running, RunPhase::Stopped];
    known.into_iter().find(|phase| &*record.kind == "status" && name(*phase) == &*record.phase)
}

pub(super) fn name(phase: RunPhase) -> &'static str {
    match phase {
        RunPhase::Started => "started",
        RunPhase::Running => "running",
        RunPhase::Stopped => "stopped",
    }
}
