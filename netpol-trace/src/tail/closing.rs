//! Closing notes on stderr: which part of the input was not shown, and how many drops there were.

use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use super::known_names::RECORDS;
use super::stream::Tail;
use crate::text::{counted, escape, thousands};

/// Nodes that a note names.
const NODES_NAMED: usize = 8;

fn note(what: &str) {
    eprintln!("note: {}", escape(what));
}

/// Writes notes on what was not shown, and which selected names do not exist. `live`: the API server was asked for the names.
pub fn notes(tail: &Tail, live: bool) {
    let counts = &tail.counts;
    let first =
        |word: &str| counts.first_not_record.as_ref().map(|first| format!(" ({word}{first})")).unwrap_or_default();
    match counts.not_records {
        0 => {}
        1 => note(&format!("1 line is not a netpol-trace record and was skipped{}", first(""))),
        many => note(&format!(
            "{} lines are not netpol-trace records and were skipped{}",
            thousands(many),
            first("first: ")
        )),
    }
    let (repeated, duplicates) = tail.not_shown_again();
    match repeated {
        0 => {}
        1 => note("1 record came more than once and is shown once"),
        many => note(&format!("{} records came more than once and are shown once", thousands(many))),
    }
    match duplicates {
        0 => {}
        1 => note("1 duplicate hidden: another node's agent recorded the same event"),
        many => note(&format!("{} duplicates hidden: other nodes' agents recorded the same events", thousands(many))),
    }
    lost_elsewhere(tail);
    let nothing = counts.drops.drops + counts.drops.unanswered == 0;
    if nothing && let Some(second) = counts.newest {
        note(&format!("the newest record in the input is from {}Z", String::from_utf8_lossy(&second)));
    }
    if !live && counts.records > 0 && (nothing || !tail.selection().pods.is_empty()) {
        let place = if tail.names.is_full() {
            format!("in the first {} records", thousands(RECORDS as u64))
        } else {
            "in the records".to_owned()
        };
        tail.names.missing(tail.selection()).iter().for_each(|missing| note(&format!("{place}: {missing}")));
    }
}

/// Notes the losses of nodes where none of the selected pods is known to run: a lost packet may still be theirs.
fn lost_elsewhere(tail: &Tail) {
    let lost = &tail.counts.lost_elsewhere;
    if lost.is_empty() {
        return;
    }
    let named: Vec<&str> = lost.keys().take(NODES_NAMED).map(String::as_str).collect();
    let more = match lost.len().saturating_sub(NODES_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (agents, were) = match lost.len() {
        1 => ("the agent of another node", "was"),
        _ => ("the agents of other nodes", "were"),
    };
    let what = match lost.values().copied().fold(0, u64::saturating_add) {
        0 => format!("{were} not counting for a time"),
        packets => format!("lost {}", counted(packets, "packet")),
    };
    let subject = tail.selection().subject();
    note(&format!("{agents} ({}{more}) {what}; nobody knows if any was{subject}", named.join(", ")));
}

/// Writes the closing line: `no drops to or from staging/db-9 in the last 10 min; 3 of 3 agents answered`.
pub fn line(tail: &Tail, since: Option<SignedDuration>, follow: bool, began: Timestamp, source: &str) {
    let what = tail.selection().describe(Some(&tail.counts.drops));
    let time = match (since, follow) {
        (None, _) => String::new(),
        (Some(since), false) => format!(" in the last {}", span(since)),
        (Some(since), true) => match began.checked_sub(since) {
            Ok(since) => format!(" since {since:.0}"),
            Err(_) => String::new(),
        },
    };
    eprintln!("netpol-trace tail: {}", escape(&format!("{what}{time}{source}")));
    let _ = io::stderr().flush();
}

/// `10 min`, `1 h 30 min`
fn span(span: SignedDuration) -> String {
    let seconds = span.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n} {unit}")).collect();
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units() {
        for (seconds, expected) in
            [(0, "0 s"), (30, "30 s"), (600, "10 min"), (5400, "1 h 30 min"), (90_061, "25 h 1 min 1 s")]
        {
            assert_eq!(span(SignedDuration::from_secs(seconds)), expected);
        }
    }
}
