//! Renders findings for people.

use std::fmt::Write;

use super::{DoctorFinding, FindingStatus, HOOK, can_record};
use crate::text::escape;

/// Renders the findings. The first line says whether this node can record drops; failures come before warnings before the rest.
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

/// What failed, without the hooks when another failure explains them.
fn why_not(findings: &[DoctorFinding]) -> String {
    let failed = || findings.iter().filter(|finding| finding.status == FindingStatus::Fail);
    let explained = failed().any(|finding| finding.check != HOOK);
    let reasons: Vec<&str> =
        failed().filter(|finding| !explained || finding.check != HOOK).map(|f| f.found.as_str()).collect();
    reasons.join("; ")
}
