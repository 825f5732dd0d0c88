//! The demo's result for people: one line per flow, the outcome first.

use std::fmt::Write;

use super::check::is_of;
use super::flows::{ExpectedOutcome, FLOWS, Flow};
use crate::record::{Record, drops};
use crate::topology::Lab;
use crate::traffic::{Attempt, Outcome};

/// Every flow with its outcome, the policies' drops first. `width` is the terminal's, in columns.
pub fn flows(lab: &Lab, records: &[Record], attempts: &[Attempt], width: usize) -> String {
    let label = FLOWS.iter().map(|flow| flow.to_string().len()).max().unwrap_or_default();
    let mut groups = [
        ("Dropped by NetworkPolicy", String::new()),
        ("Passed", String::new()),
        ("Failed for another reason", String::new()),
    ];
    for (flow, attempt) in FLOWS.iter().zip(attempts) {
        let record = drops(records)
            .filter(|record| lab.owns(record) && is_of(record, attempt))
            .max_by_key(|record| rank(flow, record));
        let group = match (&attempt.outcome, record) {
            (Outcome::Passed, _) => 1,
            (_, Some(record)) if record.cause() == "policy" => 0,
            _ => 2,
        };
        let out = &mut groups[group].1;
        let (result, detail) = describe(flow, attempt, record);
        let line = format!("  {:label$}  {}", flow.to_string(), plain(&result));
        let detail = plain(&detail);
        if line.chars().count() + 3 + detail.chars().count() <= width {
            let _ = writeln!(out, "{line} - {detail}");
        } else {
            let _ = writeln!(out, "{line}");
            wrap(out, &detail, 6, width);
        }
    }
    let filled = groups.iter().filter(|(_, lines)| !lines.is_empty());
    filled.map(|(title, lines)| format!("{title}\n{lines}\n")).collect()
}

/// The first line: how many of the policies' drops the records explain.
pub fn headline(attempts: &[Attempt], wrong: usize) -> String {
    let dropped = FLOWS.iter().filter(|flow| matches!(flow.expect, ExpectedOutcome::Dropped { .. })).count();
    let passed = attempts.iter().filter(|attempt| attempt.outcome == Outcome::Passed).count();
    let other = FLOWS.len() - dropped - passed.min(FLOWS.len() - dropped);
    match wrong {
        0 => format!(
            "{} connections: {passed} passed, {dropped} dropped by NetworkPolicy and each explained, {other} failed for \
             other reasons and not blamed on policy.",
            FLOWS.len()
        ),
        n => format!("{n} disagreements between what happened and what the records say; they are listed at the end."),
    }
}

/// Of several records of a flow, the one with the expected cause is shown.
fn rank(flow: &Flow, record: &Record) -> u8 {
    let expected = match flow.expect {
        ExpectedOutcome::Passes => "",
        ExpectedOutcome::Dropped { .. } => "policy",
        ExpectedOutcome::Fails { cause, .. } => cause,
    };
    u8::from(record.cause() == expected)
}

/// The result, and why.
fn describe(flow: &Flow, attempt: &Attempt, record: Option<&Record>) -> (String, String) {
    let seen = outcome(&attempt.outcome);
    let because = flow.because.to_owned();
    match record {
        _ if attempt.outcome == Outcome::Passed => ("passes".to_owned(), because),
        None => (format!("{seen}, and no record says why"), because),
        Some(record) if record.cause() == "policy" => {
            let direction = record.text("/direction");
            let why = match record.text("/hint/message") {
                "" => nearest(record, direction),
                hint => hint.to_owned(),
            };
            (format!("DROPPED {direction} by {}", record.isolated_by(direction).join(", ")), why)
        }
        Some(record) => {
            let cause = record.cause().replace('_', " ");
            let (reason, location) = (record.text("/kernel/reason"), record.text("/kernel/location"));
            (format!("{seen}: {cause}"), format!("{because} ({reason} in {location})"))
        }
    }
}

/// `nearest staging/db-np ingress[0].from[0].podSelector wants app=api, has app=frontend`
fn nearest(record: &Record, direction: &str) -> String {
    let at = |field: &str| record.text(&format!("/verdict/{direction}/nearest/{field}")).to_owned();
    let misses: Vec<String> = record
        .list(&format!("/verdict/{direction}/nearest/misses"))
        .iter()
        .map(|miss| {
            let text = |field: &str| miss[field].as_str().unwrap_or_default();
            format!("{} wants {}, has {}", text("field"), text("want"), text("have"))
        })
        .collect();
    match (at("policy"), at("rule")) {
        (policy, _) if policy.is_empty() => format!("no rule of these policies allows this {direction}"),
        (policy, rule) if rule.is_empty() => format!("{policy} has no {direction} rule at all"),
        (policy, rule) if misses.is_empty() => format!("nearest {policy} {rule}"),
        (policy, _) => format!("nearest {policy} {}", misses.join("; ")),
    }
}

fn outcome(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Passed => "passes",
        Outcome::TimedOut => "no answer",
        Outcome::Refused => "refused",
        Outcome::Unreachable => "unreachable",
        Outcome::Failed(why) => why,
    }
}

/// Escapes text from records for a terminal: control characters become `\u{…}`.
pub fn plain(text: &str) -> String {
    text.chars().fold(String::new(), |mut plain, c| {
        if c.is_control() {
            plain.extend(c.escape_default())
        } else {
            plain.push(c)
        }
        plain
    })
}

/// Wraps `text` into indented lines of at most `width` columns. A longer word has a line to itself.
fn wrap(out: &mut String, text: &str, indent: usize, width: usize) {
    let mut column = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        if column > 0 && column + 1 + length <= width {
            out.push(' ');
            column += 1 + length;
        } else {
            if column > 0 {
                out.push('\n');
            }
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent + length;
        }
        out.push_str(word);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_at_the_width() {
        let mut out = String::new();
        wrap(&mut out, "one two three averyveryverylongword end", 2, 12);
        assert_eq!(out, "  one two\n  three\n  averyveryverylongword\n  end\n");
    }

    #[test]
    fn a_label_cannot_move_the_cursor() {
        assert_eq!(plain("app=\u{1b}[2Jx"), "app=\\u{1b}[2Jx");
    }
}
