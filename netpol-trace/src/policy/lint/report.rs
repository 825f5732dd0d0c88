//! Findings as text for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::cluster::manifests::Loaded;
use crate::policy::lint::{LintFinding, Severity};
use crate::text::escape;

/// What was linted, and what came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct LintSummary {
    error: usize,
    warning: usize,
    info: usize,
    policies: u64,
    /// Pods, and the pod templates of workloads.
    pods: usize,
    files: u64,
    /// Problems beyond the number that is kept.
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl LintSummary {
    fn of(findings: &[LintFinding], loaded: &Loaded) -> LintSummary {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let pod = |object: &crate::cluster::Object| matches!(object, crate::cluster::Object::Pod(_));
        LintSummary {
            error: count(Severity::Error),
            warning: count(Severity::Warning),
            info: count(Severity::Info),
            policies: loaded.counts.get("NetworkPolicy").copied().unwrap_or_default(),
            pods: loaded.objects.iter().filter(|located| pod(&located.object)).count(),
            files: loaded.files,
            left_out: loaded.problems_left_out,
        }
    }
}

/// For people: findings of at least `least`, then one line of sums.
pub fn text(findings: &[LintFinding], loaded: &Loaded, least: Severity) -> String {
    let mut out = String::new();
    for finding in findings.iter().filter(|finding| finding.severity >= least) {
        one(finding, &mut out);
    }
    let summary = LintSummary::of(findings, loaded);
    let looked = format!(
        "{}, {}, {}",
        plural(summary.policies, "policy", "policies"),
        plural(summary.pods as u64, "pod or workload", "pods and workloads"),
        if summary.files == 0 { "a live cluster".to_owned() } else { plural(summary.files, "file", "files") }
    );
    let counts =
        [(summary.error, "error", "errors"), (summary.warning, "warning", "warnings"), (summary.info, "info", "info")];
    let shown: Vec<String> = counts
        .iter()
        .zip([Severity::Error, Severity::Warning, Severity::Info])
        .filter(|((count, ..), severity)| *count > 0 && *severity >= least)
        .map(|((count, one, many), _)| plural(*count as u64, one, many))
        .collect();
    let verdict = if shown.is_empty() { "nothing found".to_owned() } else { shown.join(", ") };
    let _ = write!(out, "{verdict} ({looked})");
    if summary.pods == 0 && summary.policies > 0 {
        out.push_str("; without pods or workloads in the input, selectors were not checked");
    }
    let hidden = findings.iter().filter(|finding| finding.severity < least).count();
    if hidden > 0 {
        let _ = write!(out, "; {hidden} below {least} not shown (--severity info)");
    }
    if summary.left_out > 0 {
        let _ = write!(out, "; {} more problems not kept", summary.left_out);
    }
    out.push('\n');
    out
}

fn plural(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

fn one(finding: &LintFinding, out: &mut String) {
    let place = crate::policy::lint::Location { field: String::new(), document: None, ..finding.place.clone() };
    let _ = writeln!(out, "{place}: {}[{}]: {}", finding.severity, finding.id, escape(&finding.message));
    let object = escape(&finding.object);
    match (object.is_empty(), finding.place.field.is_empty()) {
        (true, true) => {}
        (false, true) => {
            let _ = writeln!(out, "    in:  {object}");
        }
        (true, false) => {
            let _ = writeln!(out, "    in:  {}", escape(&finding.place.field));
        }
        (false, false) => {
            let _ = writeln!(out, "    in:  {object}, {}", escape(&finding.place.field));
        }
    }
    for (i, line) in finding.fix.lines().enumerate() {
        let lead = if i == 0 { "    fix: " } else { "         " };
        let _ = writeln!(out, "{lead}{}", escape(line));
    }
    out.push('\n');
}

/// One JSON document: `findings` of at least `least`, and a `summary` of all.
pub fn json(findings: &[LintFinding], loaded: &Loaded, least: Severity) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct JsonReport<'a> {
        findings: Vec<&'a LintFinding>,
        summary: LintSummary,
        skipped: &'a std::collections::BTreeMap<String, u64>,
    }
    let shown = findings.iter().filter(|finding| finding.severity >= least).collect();
    serde_json::to_string_pretty(&JsonReport {
        findings: shown,
        summary: LintSummary::of(findings, loaded),
        skipped: &loaded.skipped,
    })
}
