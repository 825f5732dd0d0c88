//! The findings of an audit, as text and as JSON.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::Audit;
use super::run::{Run, name};
use crate::text::{counted, escape, thousands};

/// Whether the log accounts for every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// Every packet is in a record or in a loss record with its count.
    Complete,
    /// The same, but there is declared time in which nobody counted.
    CompleteButForGaps,
    /// Something is missing that the log does not declare.
    Incomplete,
}

#[derive(Debug, Serialize)]
pub struct AuditReport {
    pub answer: Completeness,
    pub records: u64,
    /// Lines that are not records.
    pub broken_lines: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_broken_line: Option<String>,
    /// Logs that could not be read to their end, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    pub runs: Vec<RunReport>,
}

/// One run: packets, and what is wrong.
#[derive(Debug, Serialize)]
pub struct RunReport {
    pub run: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub first_time: Timestamp,
    pub last_time: Timestamp,
    pub records: u64,
    /// Packets in drop records.
    pub recorded: u64,
    /// Packets in loss records.
    pub declared_lost: u64,
    /// Packets that BPF's recursion protection hid, by estimate.
    pub estimated_lost: u64,
    /// The phase of the latest status, and how many records came after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<&'static str>,
    pub after_last_status: u64,
    /// Records that came twice.
    pub duplicates: u64,
    /// Numbers of records that the log lacks.
    pub missing: u64,
    /// Declared time in which nobody counted.
    pub gaps: Vec<String>,
    /// What does not add up or is missing.
    pub wrong: Vec<String>,
}

pub(super) fn of(audit: Audit) -> AuditReport {
    let Audit { mut runs, broken, first_broken, unread, records, beyond, .. } = audit;
    runs.sort_by(|a, b| (&a.cluster, &a.node, a.first_time).cmp(&(&b.cluster, &b.node, b.first_time)));
    for run in &mut runs {
        run.close();
        let (missing, ranges) = run.missing();
        if missing > 0 {
            let are = if missing == 1 { "is" } else { "are" };
            run.wrong(format!("{} {are} missing: {}", counted(missing, "record"), ranges.join(", ")));
        }
        if run.checkpoint.is_none() {
            run.wrong("no status record, so the number of packets is not known".into());
        }
        if run.first > 1 {
            run.gaps.push(format!("records 1 to {} are not in this log", run.first - 1));
        }
    }
    for at in 0..runs.len() {
        let follows = |next: &&Run| next.node == runs[at].node && next.cluster == runs[at].cluster;
        let next = runs.get(at + 1).filter(follows);
        let run = &runs[at];
        match next {
            // Of two runs of one node, the later one declares the time in between, in which no hook was attached.
            Some(next) if next.gaps.is_empty() => {
                let what =
                    format!("no record declares the time without a hook from {} to {}", run.last_time, next.first_time);
                runs[at + 1].wrong(what);
            }
            None if !run.stopped && run.checkpoint.is_some() => {
                let what = format!("no status `stopped`: what happened after {} is not known", run.last_time);
                runs[at].gaps.push(what);
            }
            _ => {}
        }
    }
    let runs: Vec<RunReport> = runs.into_iter().map(run_report).collect();
    let answer = if broken > 0
        || !unread.is_empty()
        || beyond > 0
        || runs.is_empty()
        || runs.iter().any(|run| !run.wrong.is_empty())
    {
        Completeness::Incomplete
    } else if runs.iter().any(|run| !run.gaps.is_empty()) {
        Completeness::CompleteButForGaps
    } else {
        Completeness::Complete
    };
    AuditReport { answer, records, broken_lines: broken, first_broken_line: first_broken, unread, runs }
}

fn run_report(mut run: Run) -> RunReport {
    if run.more_wrong > 0 {
        run.wrong.push(format!("and {} more", run.more_wrong));
    }
    RunReport {
        missing: run.missing().0,
        last_status: run.checkpoint.map(|c| name(c.phase)),
        after_last_status: run.checkpoint.map_or(0, |c| run.last - c.seq),
        run: run.id,
        cluster: run.cluster,
        node: run.node,
        first_time: run.first_time,
        last_time: run.last_time,
        records: run.records,
        recorded: run.sums.recorded,
        declared_lost: run.sums.declared,
        estimated_lost: run.sums.estimated,
        duplicates: run.duplicates,
        gaps: run.gaps,
        wrong: run.wrong,
    }
}

impl AuditReport {
    /// Writes the report as text: the answer first, then a paragraph for each run.
    pub fn text(&self) -> String {
        let sum = |of: fn(&RunReport) -> u64| self.runs.iter().map(of).fold(0, u64::saturating_add);
        let mut text = match self.answer {
            Completeness::Complete => "Complete: every packet is in a record or in a declared loss.\n".to_owned(),
            Completeness::CompleteButForGaps => {
                "Complete but for declared gaps: there was time in which nobody counted.\n".to_owned()
            }
            Completeness::Incomplete if self.records == 0 => "NOT complete: there is no record.\n".to_owned(),
            Completeness::Incomplete => {
                "NOT complete: something is missing that the log does not declare.\n".to_owned()
            }
        };
        let _ = writeln!(
            text,
            "{} of {}: {} recorded, {} declared lost, {} more lost by estimate.",
            counted(self.records, "record"),
            counted(self.runs.len() as u64, "run"),
            counted(sum(|run| run.recorded), "packet"),
            thousands(sum(|run| run.declared_lost)),
            thousands(sum(|run| run.estimated_lost)),
        );
        if let Some(first) = &self.first_broken_line {
            let lines = match self.broken_lines {
                1 => "1 line is not a record:".to_owned(),
                many => format!("{} lines are not records; the first is", thousands(many)),
            };
            let _ = writeln!(text, "{lines} {}", escape(first));
        }
        for why in &self.unread {
            let _ = writeln!(text, "  WRONG: {}", escape(why));
        }
        for run in &self.runs {
            let node = run.node.as_deref().map(|node| format!(" on {}", escape(node))).unwrap_or_default();
            let _ = writeln!(
                text,
                "\nrun {}{node}, {} to {}: {}, {}, {} declared lost",
                escape(&run.run),
                run.first_time,
                run.last_time,
                counted(run.records, "record"),
                counted(run.recorded, "packet"),
                thousands(run.declared_lost)
            );
            if run.duplicates > 0 {
                let _ = match run.duplicates {
                    1 => writeln!(text, "  1 record came twice; it is counted once"),
                    many => writeln!(text, "  {} records came twice; they are counted once", thousands(many)),
                };
            }
            for gap in &run.gaps {
                let _ = writeln!(text, "  gap: {}", escape(gap));
            }
            for wrong in &run.wrong {
                let _ = writeln!(text, "  WRONG: {}", escape(wrong));
            }
        }
        text
    }
}
