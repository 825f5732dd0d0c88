//! The summary of a period: the pairs, policies and hints with most packets. Bounded: rows without room are counted together.

use std::collections::HashMap;
use std::fmt::Write as _;

use jiff::Timestamp;

use super::paint::{Ink, cut, width, wrap};
use super::text::Style;
use crate::record::describe;
use crate::record::read::RecordView;
use crate::text::counted;

/// Rows of each table that are counted.
const ROWS: usize = 20_000;
/// Rows of each table that are shown.
const SHOWN: usize = 10;

#[derive(Debug, Default)]
pub struct DropSummary {
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    records: u64,
    packets: u64,
    unanswered: u64,
    causes: TopTable<String>,
    pairs: TopTable<String>,
    policies: TopTable<String>,
    hints: TopTable<u64>,
    /// Code and message for each row of `hints`.
    messages: HashMap<u64, (String, String)>,
    nodes: TopTable<String>,
    /// Lost packets by stage and reason.
    losses: TopTable<String>,
    changes: u64,
}

/// Packets by key. `others` counts those of keys without room.
#[derive(Debug)]
struct TopTable<K> {
    rows: HashMap<K, u64>,
    others: u64,
}

impl<K> Default for TopTable<K> {
    fn default() -> TopTable<K> {
        TopTable { rows: HashMap::new(), others: 0 }
    }
}

impl<K: std::hash::Hash + Eq + Ord> TopTable<K> {
    fn add<Q>(&mut self, key: &Q, packets: u64)
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(row) = self.rows.get_mut(key) {
            *row = row.saturating_add(packets);
        } else if self.rows.len() < ROWS {
            self.rows.insert(key.to_owned(), packets);
        } else {
            self.others = self.others.saturating_add(packets);
        }
    }

    /// Returns the rows with most packets first. Rows with equal packets are in the order of their keys, so that the output is always the same.
    fn top(&self) -> Vec<(&K, u64)> {
        let mut rows: Vec<_> = self.rows.iter().map(|(key, packets)| (key, *packets)).collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        rows
    }
}

impl DropSummary {
    pub fn add(&mut self, record: &RecordView<'_>) {
        self.first = Some(self.first.map_or(record.time, |first| first.min(record.time)));
        let last = record.last_time.unwrap_or(record.time);
        self.last = self.last.max(Some(last));
        let packets = record.packets();
        match &*record.kind {
            "drop" => {
                self.records += 1;
                self.packets = self.packets.saturating_add(packets);
                self.causes.add(&*record.cause, packets);
            }
            "unanswered" => {
                self.unanswered = self.unanswered.saturating_add(packets);
                return;
            }
            "loss" => {
                return self.losses.add(&format!("{}: {}", &*record.stage, &*record.reason), record.count.unwrap_or(0));
            }
            "policy_change" => {
                self.changes += 1;
                return;
            }
            _ => return,
        }
        self.nodes.add(&*record.node, packets);
        if let (Some(source), Some(destination)) = (&record.source, &record.destination) {
            let pair = format!(
                "{} -> {} {}",
                describe::workload(source),
                describe::workload(destination),
                describe::port(record)
            );
            self.pairs.add(&pair, packets);
        }
        if let Some(verdict) = record.verdict.as_ref().filter(|verdict| &*verdict.result == "denied") {
            for (direction, side) in [("egress", &verdict.egress), ("ingress", &verdict.ingress)] {
                for policy in side.isolated_by.iter().filter(|_| &*side.result == "denied") {
                    self.policies.add(&format!("{}/{} {direction}", &*policy.namespace, &*policy.name), packets);
                }
            }
        }
        if let Some(hint) = &record.hint {
            let case = describe::hint_key(record);
            self.hints.add(&case, packets);
            if self.messages.len() < ROWS && self.hints.rows.contains_key(&case) {
                self.messages
                    .entry(case)
                    .or_insert_with(|| (describe::name(&hint.code), describe::sentence(&hint.message)));
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub fn text(&self, style: Style) -> String {
        let mut out = String::new();
        let (Some(first), Some(last)) = (self.first, self.last) else { return "There are no records.\n".to_owned() };
        let causes: Vec<_> = self.causes.top().iter().map(|(c, n)| format!("{n} {}", describe::name(c))).collect();
        let _ = writeln!(
            out,
            "{}, {} on {}, {first:.0} to {last:.0}{}{}",
            counted(self.packets, "dropped packet"),
            counted(self.records, "record"),
            counted(self.nodes.rows.len() as u64, "node"),
            if causes.is_empty() { "" } else { ": " },
            causes.join(", ")
        );
        if self.unanswered > 0 {
            let _ = writeln!(out, "{} without an answer", counted(self.unanswered, "connection"));
        }
        if self.changes > 0 {
            let _ = writeln!(out, "{}", counted(self.changes, "policy change"));
        }
        for (what, count) in self.losses.top() {
            let what = describe::name(what);
            let _ = writeln!(
                out,
                "{}",
                style.paint.ink(&format!("{} without a record ({what})", counted(count, "packet")), Ink::Bad)
            );
        }
        self.rows(style, "From -> to", &self.pairs, describe::name, &mut out);
        self.rows(style, "Policies that denied", &self.policies, describe::name, &mut out);
        self.fixes(style, &mut out);
        out
    }

    fn rows(
        &self,
        style: Style,
        title: &str,
        table: &TopTable<String>,
        name: impl Fn(&str) -> String,
        out: &mut String,
    ) {
        let top = table.top();
        if top.is_empty() {
            return;
        }
        heading(style, title, out);
        for (key, packets) in top.iter().take(SHOWN) {
            let text = name(key);
            let text = style.width.map_or_else(|| text.clone(), |columns| cut(&text, columns.saturating_sub(11)));
            let _ = writeln!(out, "{packets:>9}  {text}");
        }
        rest(
            top.iter().skip(SHOWN).fold(table.others, |sum, (_, packets)| sum.saturating_add(*packets)),
            top.len(),
            out,
        );
    }

    fn fixes(&self, style: Style, out: &mut String) {
        let top = self.hints.top();
        if top.is_empty() {
            return;
        }
        heading(style, "What to do", out);
        for (case, packets) in top.iter().take(SHOWN) {
            let Some((code, message)) = self.messages.get(case) else { continue };
            let columns = style.width.unwrap_or(usize::MAX).saturating_sub(11).max(20);
            for (at, line) in wrap(&format!("{code}: {message}"), columns).iter().enumerate() {
                let number = if at == 0 { format!("{packets:>9}") } else { " ".repeat(9) };
                let _ = writeln!(out, "{number}  {}", style.paint.ink(line, Ink::Hint));
            }
        }
        rest(
            top.iter().skip(SHOWN).fold(self.hints.others, |sum, (_, packets)| sum.saturating_add(*packets)),
            top.len(),
            out,
        );
    }
}

fn heading(style: Style, title: &str, out: &mut String) {
    debug_assert!(width(title) < 60);
    let _ = writeln!(out, "\n  packets  {}", style.paint.ink(title, Ink::Strong));
}

fn rest(packets: u64, rows: usize, out: &mut String) {
    if packets > 0 {
        let _ = writeln!(out, "{packets:>9}  in {} more", rows.saturating_sub(SHOWN).max(1));
    }
}
