//! The way of a line through `tail`: selected, put in order, shown once.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use super::dedup::Dedup;
use super::names::KnownNames;
use super::order::Sorter;
use super::select::{DropCounts, Prefilter, SECOND, Selection};
use super::summary::DropSummary;
use super::text::{Printer, Style};
use crate::record::read;
use crate::record::read::RecordView;
use crate::record::read::looks_like_a_record;

/// A record this young has only just been made: what is sorted may go out.
const LIVE: SignedDuration = SignedDuration::from_secs(3);

/// Nodes that are told apart.
const NODES: usize = 10_000;

/// What is made of the records.
#[derive(Debug)]
pub enum Rendering {
    Text(Printer),
    /// The lines as they are, except for what a terminal would obey.
    Json,
    Summary(Box<DropSummary>, Style),
}

#[derive(Debug)]
pub struct Tail {
    wanted: Selection,
    prefilter: Prefilter,
    sorter: Sorter,
    dedup: Dedup,
    form: Rendering,
    /// Where only some pods are looked for: the nodes whose agents' words are about them.
    nodes: HashSet<String>,
    everywhere: bool,
    /// What the records name, for those that name nothing that is looked for.
    pub names: KnownNames,
    pub tally: TailCounts,
    pub input: LogCounts,
}

/// What became of the lines.
#[derive(Debug, Default, Clone)]
pub struct TailCounts {
    pub records: u64,
    pub found: DropCounts,
    /// Lines that are not records, with the first one's place where they come from one log.
    pub not_records: u64,
    pub first_not_record: Option<String>,
    /// The second of the newest record that came by, wanted or not, with `--since`.
    pub newest: Option<[u8; SECOND]>,
    /// What agents of other nodes have lost, by node: packets.
    pub lost_elsewhere: BTreeMap<String, u64>,
}

/// The log that is read now, by its name, if it has one.
#[derive(Debug, Default)]
pub struct LogCounts {
    pub name: Option<String>,
    lines: u64,
    /// Lines that are not empty, and those that are not records.
    pub filled: u64,
    pub not_records: u64,
    /// What the first of these is.
    pub first_not_record: Option<String>,
}

impl Tail {
    pub fn new(wanted: Selection, form: Rendering) -> Tail {
        Tail {
            prefilter: Prefilter::new(&wanted),
            names: KnownNames::of_records(wanted.names_ends()),
            wanted,
            sorter: Sorter::default(),
            dedup: Dedup::default(),
            form,
            nodes: HashSet::new(),
            everywhere: false,
            tally: TailCounts::default(),
            input: LogCounts::default(),
        }
    }

    pub fn wanted(&self) -> &Selection {
        &self.wanted
    }

    /// What follows comes from the log called `name`.
    pub fn begin(&mut self, name: &str) {
        self.input = LogCounts { name: Some(name.to_owned()), ..LogCounts::default() };
    }

    /// A pod that is looked for, or its peer, runs on `node`: what that node's agent lost may be the pod's.
    pub fn relate(&mut self, node: &str) {
        if self.nodes.len() < NODES && !self.nodes.contains(node) {
            self.nodes.insert(node.to_owned());
        }
    }

    /// The pods that are looked for are too many to know where they run.
    pub fn relate_all(&mut self) {
        self.everywhere = true;
    }

    /// Takes one line; it is shown with the next [`Tail::release`].
    pub fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.input.lines += 1;
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        self.input.filled += 1;
        if !looks_like_a_record(line) {
            self.not_a_record(line);
            return Ok(());
        }
        self.tally.newest = self.tally.newest.max(self.prefilter.second(line).copied());
        let may_match = self.prefilter.may_match(line);
        if !may_match && self.names.is_full() {
            self.tally.records += 1;
            return Ok(());
        }
        let Some(record) = read::read(line) else {
            self.not_a_record(line);
            return Ok(());
        };
        self.tally.records += 1;
        let wants = may_match && self.wanted.wants(&record);
        self.names.record(&record, wants && record.is_flow() && self.wanted.names_ends());
        if !wants {
            return Ok(());
        }
        if record.is_flow() && self.wanted.names_ends() {
            self.relate(&record.node);
            let pods = record.ends().filter_map(|end| end.pod.as_ref());
            pods.filter(|pod| !pod.node.is_empty()).for_each(|pod| self.relate(&pod.node));
        }
        match &mut self.form {
            // Sums need no order; what agents say of themselves waits until their nodes are known.
            Rendering::Summary(summary, _) if record.is_flow() => {
                if self.dedup.is_new(&record) {
                    self.tally.count(&record);
                    summary.add(&record);
                }
                Ok(())
            }
            _ => self.sorter.push(record.time, line),
        }
    }

    fn not_a_record(&mut self, line: &[u8]) {
        self.tally.not_records += 1;
        self.input.not_records += 1;
        if self.input.first_not_record.is_none() {
            self.input.first_not_record = Some(crate::record::magic::line(line));
        }
        if self.tally.first_not_record.is_none() {
            let number = self.input.lines;
            self.tally.first_not_record = self.input.name.as_ref().map(|name| format!("{name}:{number}"));
        }
    }

    /// Whether what has gathered reaches to the present, so that nothing older is likely to come.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.sorter.newest.is_some_and(|newest| now.duration_since(newest) < LIVE)
    }

    /// Shows what has gathered.
    pub fn release(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.sorter.is_empty() {
            return Ok(());
        }
        let Tail { sorter, dedup, form, tally, nodes, wanted, everywhere, .. } = self;
        let some_nodes = wanted.names_ends() && !*everywhere;
        let mut text = String::new();
        sorter.drain(|line| {
            let Some(record) = read::read(line).filter(|record| dedup.is_new(record)) else { return Ok(()) };
            // Agents' words about themselves, from where none of the pods is, would look like an answer about these. What an agent
            // lost that does not name its node may be theirs.
            let elsewhere = some_nodes && !nodes.contains(&*record.node);
            match &*record.kind {
                "status" if elsewhere => return Ok(()),
                "loss" if elsewhere && !record.node.is_empty() => {
                    tally.elsewhere(&record);
                    return Ok(());
                }
                _ => {}
            }
            tally.count(&record);
            match form {
                Rendering::Text(printer) => {
                    text.clear();
                    printer.record(&record, &mut text);
                    out.write_all(text.as_bytes())
                }
                Rendering::Json => json(line, out),
                Rendering::Summary(summary, _) => {
                    summary.add(&record);
                    Ok(())
                }
            }
        })?;
        out.flush()
    }

    /// Shows the rest, and the summary.
    pub fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.release(out)?;
        if let Rendering::Summary(summary, style) = &self.form {
            out.write_all(summary.text(*style).as_bytes())?;
        }
        out.flush()
    }

    /// Records that were kept back since they had been shown: the same ones, and other agents' of the same packet.
    pub fn repeated(&self) -> (u64, u64) {
        (self.dedup.repeated, self.dedup.duplicates)
    }
}

impl TailCounts {
    fn count(&mut self, record: &RecordView<'_>) {
        match &*record.kind {
            "drop" => {
                self.found.drops += 1;
                self.found.packets = self.found.packets.saturating_add(record.packets());
            }
            "unanswered" => self.found.unanswered = self.found.unanswered.saturating_add(record.packets()),
            _ => {}
        }
    }

    fn elsewhere(&mut self, record: &RecordView<'_>) {
        if self.lost_elsewhere.len() < NODES || self.lost_elsewhere.contains_key(&*record.node) {
            let lost = self.lost_elsewhere.entry(record.node.to_string()).or_default();
            *lost = lost.saturating_add(record.count.unwrap_or(0));
        }
    }
}

/// The line; characters that a terminal obeys or that reorder text as `\u` escapes, which mean the same in JSON.
fn json(line: &[u8], out: &mut impl Write) -> io::Result<()> {
    if line.iter().all(|b| (0x20..0x7f).contains(b)) {
        out.write_all(line)?;
        return out.write_all(b"\n");
    }
    let mut safe = String::with_capacity(line.len() + 16);
    for c in String::from_utf8_lossy(line).chars() {
        match c {
            // Outside of texts, where alone JSON allows them.
            '\t' | '\r' => safe.push(' '),
            c if crate::text::is_unsafe(c) => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe.push('\n');
    out.write_all(safe.as_bytes())
}
