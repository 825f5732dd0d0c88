//! The way of a record through `tail`: selected, sorted, shown once.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use super::dedup::Dedup;
use super::known_names::KnownNames;
use super::line::ParsedLine;
use super::order::Sorter;
use super::render::Rendering;
use super::select::{DropCounts, Prefilter, SECOND, Selection};
use crate::record::read::{RecordView, begins_as_a_record};
use crate::recorded::LogCounts;
use crate::recorded::input::{LogError, LogInput};

/// When the newest record is this young, older ones are unlikely to come: what is sorted can be shown.
const LIVE: SignedDuration = SignedDuration::from_secs(3);

/// Nodes that are kept apart.
const NODES: usize = 10_000;

/// One log among those that a [`Tail`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogId(usize);

#[derive(Debug)]
pub struct Tail {
    selection: Selection,
    prefilter: Prefilter,
    sorter: Sorter,
    dedup: Dedup,
    rendering: Rendering,
    /// If only some pods are selected: the nodes whose agents' statuses and losses concern them.
    nodes: HashSet<String>,
    every_node: bool,
    /// The names in the records, for messages about a name that does not exist.
    pub names: KnownNames,
    pub counts: TailCounts,
    logs: Vec<OpenLog>,
}

/// A log by its name, if it has one, and what its lines are.
#[derive(Debug)]
struct OpenLog {
    name: Option<String>,
    counts: LogCounts,
}

/// What became of the lines of all logs.
#[derive(Debug, Default, Clone)]
pub struct TailCounts {
    pub records: u64,
    pub drops: DropCounts,
    /// Lines that are not records, with the place of the first one if its log has a name.
    pub not_records: u64,
    pub first_not_record: Option<String>,
    /// The second of the newest record that was read, selected or not. Kept with `--since` only.
    pub newest: Option<[u8; SECOND]>,
    /// Packets that the agents of other nodes have lost, by node.
    pub lost_elsewhere: BTreeMap<String, u64>,
}

impl Tail {
    pub fn new(selection: Selection, rendering: Rendering) -> Tail {
        Tail {
            prefilter: Prefilter::new(&selection),
            names: KnownNames::of_records(selection.is_about_pods()),
            selection,
            sorter: Sorter::default(),
            dedup: Dedup::default(),
            rendering,
            nodes: HashSet::new(),
            every_node: false,
            counts: TailCounts::default(),
            logs: Vec::new(),
        }
    }

    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Adds a log to read from. Messages use its name.
    pub fn add_log(&mut self, name: Option<&str>) -> LogId {
        self.logs.push(OpenLog { name: name.map(str::to_owned), counts: LogCounts::default() });
        LogId(self.logs.len() - 1)
    }

    /// Returns what is wrong with a log that was read to its end and in which no line is a record.
    pub fn problem(&self, log: LogId, input: &LogInput) -> Option<LogError> {
        self.logs.get(log.0)?.counts.problem(input)
    }

    /// Adds a node on which a selected pod or its peer runs: packets that its agent lost may be the pod's.
    pub fn add_node(&mut self, node: &str) {
        if self.nodes.len() < NODES && !self.nodes.contains(node) {
            self.nodes.insert(node.to_owned());
        }
    }

    /// Counts every node as one of the selected pods: there are too many pods to know where they run.
    pub fn add_every_node(&mut self) {
        self.every_node = true;
    }

    /// Takes one line. The next [`Tail::release`] shows it.
    pub fn line(&mut self, log: LogId, line: &[u8]) -> io::Result<()> {
        let as_written = begins_as_a_record(line);
        if as_written && !self.prefilter.may_match(line) && self.names.is_full() {
            self.count_record(log, line);
            return Ok(());
        }
        match ParsedLine::parse(line) {
            Some(record) => self.record(log, record),
            None => {
                self.not_a_record(log, line);
                Ok(())
            }
        }
    }

    /// Takes a record that is parsed already.
    pub fn record(&mut self, log: LogId, line: ParsedLine) -> io::Result<()> {
        self.count_record(log, line.line());
        let record = line.record();
        let selected = self.selection.selects(record);
        let about_pods = record.is_flow() && self.selection.is_about_pods();
        self.names.add_record(record, selected && about_pods);
        if !selected {
            return Ok(());
        }
        if about_pods {
            self.add_node(&record.node);
            let pods = record.endpoints().filter_map(|end| end.pod.as_ref());
            pods.filter(|pod| !pod.node.is_empty()).for_each(|pod| self.add_node(&pod.node));
        }
        match &mut self.rendering {
            // Sums need no order. Statuses and losses wait until the pods' nodes are known.
            Rendering::Summary(summary, _) if record.is_flow() => {
                if self.dedup.is_new(record) {
                    self.counts.add(record);
                    summary.add(record);
                }
                Ok(())
            }
            _ => self.sorter.push(line),
        }
    }

    fn count_record(&mut self, log: LogId, line: &[u8]) {
        self.counts.records += 1;
        self.counts.newest = self.counts.newest.max(self.prefilter.second(line).copied());
        if let Some(log) = self.logs.get_mut(log.0) {
            log.counts.record();
        }
    }

    /// Takes a line that is not a record; an empty one is ignored.
    pub fn not_a_record(&mut self, log: LogId, line: &[u8]) {
        let Some(log) = self.logs.get_mut(log.0) else { return };
        if line.trim_ascii().is_empty() {
            return log.counts.empty_line();
        }
        log.counts.not_a_record(line);
        self.counts.not_records += 1;
        if self.counts.first_not_record.is_none() {
            self.counts.first_not_record = log.name.as_ref().map(|name| format!("{name}:{}", log.counts.lines));
        }
    }

    /// Returns true if the sorted records reach to `now`, so that nothing older is likely to come.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.sorter.newest.is_some_and(|newest| now.duration_since(newest) < LIVE)
    }

    /// Shows the records taken so far.
    pub fn release(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.sorter.is_empty() {
            return Ok(());
        }
        let Tail { sorter, dedup, rendering, counts, nodes, selection, every_node, .. } = self;
        let some_nodes = selection.is_about_pods() && !*every_node;
        let mut text = String::new();
        sorter.drain(|record, line| {
            if !dedup.is_new(record) {
                return Ok(());
            }
            // A status of a node where none of the selected pods is would look like an answer about these pods. A loss may be theirs if it
            // does not name its node.
            let elsewhere = some_nodes && !nodes.contains(&*record.node);
            match &*record.kind {
                "status" if elsewhere => return Ok(()),
                "loss" if elsewhere && !record.node.is_empty() => {
                    counts.add_loss_elsewhere(record);
                    return Ok(());
                }
                _ => {}
            }
            counts.add(record);
            match rendering {
                Rendering::Text(printer) => {
                    text.clear();
                    printer.record(record, &mut text);
                    out.write_all(text.as_bytes())
                }
                Rendering::Json => write_json(line, out),
                Rendering::Summary(summary, _) => {
                    summary.add(record);
                    Ok(())
                }
            }
        })?;
        out.flush()
    }

    /// Shows the rest, and the summary.
    pub fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.release(out)?;
        if let Rendering::Summary(summary, style) = &self.rendering {
            out.write_all(summary.text(*style).as_bytes())?;
        }
        out.flush()
    }

    /// Returns how many records were not shown because they had been: the same record, and another agent's record of the same event.
    pub fn not_shown_again(&self) -> (u64, u64) {
        (self.dedup.repeated, self.dedup.duplicates)
    }
}

impl TailCounts {
    fn add(&mut self, record: &RecordView<'_>) {
        match &*record.kind {
            "drop" => {
                self.drops.drops += 1;
                self.drops.packets = self.drops.packets.saturating_add(record.packets());
            }
            "unanswered" => self.drops.unanswered = self.drops.unanswered.saturating_add(record.packets()),
            _ => {}
        }
    }

    fn add_loss_elsewhere(&mut self, record: &RecordView<'_>) {
        if self.lost_elsewhere.len() < NODES || self.lost_elsewhere.contains_key(&*record.node) {
            let lost = self.lost_elsewhere.entry(record.node.to_string()).or_default();
            *lost = lost.saturating_add(record.count.unwrap_or(0));
        }
    }
}

/// Writes the line. Characters that a terminal would act on become `\u` escapes, which mean the same in JSON.
fn write_json(line: &[u8], out: &mut impl Write) -> io::Result<()> {
    if line.iter().all(|b| (0x20..0x7f).contains(b)) {
        out.write_all(line)?;
        return out.write_all(b"\n");
    }
    let mut safe = String::with_capacity(line.len() + 16);
    for c in String::from_utf8_lossy(line).chars() {
        match c {
            // JSON allows these outside of strings only.
            '\t' | '\r' => safe.push(' '),
            c if crate::text::is_unsafe(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    safe.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => safe.push(c),
        }
    }
    safe.push('\n');
    out.write_all(safe.as_bytes())
}
