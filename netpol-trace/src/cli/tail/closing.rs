//! The last words on stderr: what of the input was not shown, and how many drops there were.

use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use super::TailArgs;
use crate::tail::names::RECORDS;
use crate::tail::stream::Tail;
use crate::text::{counted, escape, thousands};

/// Nodes that a message names.
const NAMED: usize = 8;

fn note(what: &str) {
    eprintln!("note: {}", escape(what));
}

/// What was not shown, and what there is instead of what was not found. `live`: the API server was asked for the latter.
pub(super) fn notes(tail: &Tail, live: bool) {
    let tally = &tail.tally;
    let first =
        |word: &str| tally.first_not_record.as_ref().map(|first| format!(" ({word}{first})")).unwrap_or_default();
    match tally.not_records {
        0 => {}
        1 => note(&format!("1 line is not a netpol-trace record and was skipped{}", first(""))),
        many => note(&format!(
            "{} lines are not netpol-trace records and were skipped{}",
            thousands(many),
            first("first: ")
        )),
    }
    let (repeated, duplicates) = tail.repeated();
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
    let nothing = tally.found.drops + tally.found.unanswered == 0;
    if nothing && let Some(second) = tally.newest {
        note(&format!("the newest record that was looked at is of {}Z", String::from_utf8_lossy(&second)));
    }
    if !live && tally.records > 0 && (nothing || !tail.wanted().pods.is_empty()) {
        let place = if tail.names.is_full() {
            format!("in the first {} records", thousands(RECORDS as u64))
        } else {
            "in the records".to_owned()
        };
        tail.names.missing(tail.wanted()).iter().for_each(|missing| note(&format!("{place}: {missing}")));
    }
}

/// Agents' words about themselves are shown only from where the pods are; their losses are not left out altogether.
fn lost_elsewhere(tail: &Tail) {
    let lost = &tail.tally.lost_elsewhere;
    if lost.is_empty() {
        return;
    }
    let named: Vec<&str> = lost.keys().take(NAMED).map(String::as_str).collect();
    let more = match lost.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let agents = if lost.len() == 1 { "the agent of another node" } else { "agents of other nodes" };
    let packets = match lost.values().copied().fold(0, u64::saturating_add) {
        0 => "were not counting for a time".to_owned(),
        packets => format!("lost {}", counted(packets, "packet")),
    };
    let packets = if lost.len() == 1 { packets.replacen("were", "was", 1) } else { packets };
    let subject = tail.wanted().subject();
    note(&format!("{agents} ({}{more}) {packets}: whether any was{subject} can't be told", named.join(", ")));
}

/// `no drops to or from staging/db-9 in the last 10 min; 3 of 3 agents answered`
pub(super) fn line(args: &TailArgs, tail: &Tail, began: Timestamp, found_in: &str) {
    let what = tail.wanted().describe(Some(&tail.tally.found));
    let time = match (args.since, args.follow) {
        (None, _) => String::new(),
        (Some(since), false) => format!(" in the last {}", span(since)),
        (Some(since), true) => match began.checked_sub(since) {
            Ok(since) => format!(" since {since:.0}"),
            Err(_) => String::new(),
        },
    };
    eprintln!("netpol-trace tail: {}", escape(&format!("{what}{time}{found_in}")));
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
    fn spans_are_written_as_people_say_them() {
        for (seconds, expected) in
            [(0, "0 s"), (30, "30 s"), (600, "10 min"), (5400, "1 h 30 min"), (90_061, "25 h 1 min 1 s")]
        {
            assert_eq!(span(SignedDuration::from_secs(seconds)), expected);
        }
    }
}
