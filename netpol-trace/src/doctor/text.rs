//! The findings for people: the answer first.

use std::fmt::Write;

use super::{DoctorFinding, FindingStatus, HOOK, can_record};

/// The first line answers "can this node record drops?"; then a block per finding, what is wrong before what is fine.
pub fn text(findings: &[DoctorFinding]) -> String {
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let warnings = count(FindingStatus::Warn);
    let mut out = match (can_record(findings), warnings) {
        (true, 0) => "Yes: drops can be recorded here.\n".to_owned(),
        (true, 1) => "Yes: drops can be recorded here, with one limit.\n".to_owned(),
        (true, limits) => format!("Yes: drops can be recorded here, with {limits} limits.\n"),
        (false, _) => format!("No: drops can't be recorded here: {}.\n", escape(&why_not(findings))),
    };
    for status in [FindingStatus::Fail, FindingStatus::Warn, FindingStatus::Ok] {
        let mut of_status = findings.iter().filter(|finding| finding.status == status).peekable();
        if of_status.peek().is_some() {
            out.push('\n');
        }
        for finding in of_status {
            let mark = match status {
                FindingStatus::Ok => "ok",
                FindingStatus::Warn => "warn",
                FindingStatus::Fail => "FAIL",
            };
            // Writing to a String can't fail.
            let _ = writeln!(out, "{mark:<5}{:<13}{}", finding.check, escape(&finding.found));
            let _ = writeln!(out, "{:18}{}", "", escape(&finding.meaning));
            if let Some(remedy) = &finding.remedy {
                let _ = writeln!(out, "{:18}To do: {}", "", escape(remedy));
            }
        }
    }
    out
}

/// What failed, without the hooks when something else explains them.
fn why_not(findings: &[DoctorFinding]) -> String {
    let failed = || findings.iter().filter(|finding| finding.status == FindingStatus::Fail);
    let explained = failed().any(|finding| finding.check != HOOK);
    let reasons: Vec<&str> =
        failed().filter(|finding| !explained || finding.check != HOOK).map(|f| f.found.as_str()).collect();
    reasons.join("; ")
}

/// Names come from the node's rulesets: nothing in them may steer a terminal.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Besides control characters, those that reorder or hide what follows.
        let unsafe_mark =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        match c {
            c if c.is_control() || unsafe_mark => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}
