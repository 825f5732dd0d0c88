//! SARIF 2.1.0: the format that code hosts read to show findings beside the changed lines.

use serde_json::{Value, json};

use crate::policy::lint::catalogue::LINTS;
use crate::policy::lint::{LintFinding, Severity};

/// One SARIF log of findings of at least `least`.
pub fn sarif(findings: &[LintFinding], least: Severity) -> serde_json::Result<String> {
    let rules: Vec<Value> = LINTS
        .iter()
        .map(|lint| {
            json!({
                "id": lint.id,
                "shortDescription": {"text": lint.title},
                "fullDescription": {"text": lint.what},
                "help": {"text": lint.fix},
                "defaultConfiguration": {"level": level(lint.severity)},
            })
        })
        .collect();
    let results: Vec<Value> = findings.iter().filter(|finding| finding.severity >= least).map(result).collect();
    serde_json::to_string_pretty(&json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "netpol-trace",
                "version": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules,
            }},
            "results": results,
        }],
    }))
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    }
}

fn result(finding: &LintFinding) -> Value {
    let mut physical = json!({"artifactLocation": {"uri": uri(&finding.place.file.to_string_lossy())}});
    if let Some(line) = finding.place.line {
        physical["region"] = json!({"startLine": line});
    }
    let mut location = json!({"physicalLocation": physical});
    if !finding.object.is_empty() {
        let name = format!("{} {}", finding.object, finding.place.field);
        location["logicalLocations"] = json!([{"fullyQualifiedName": name.trim_end()}]);
    }
    let mut result = json!({
        "ruleId": finding.id,
        "level": level(finding.severity),
        "message": {"text": format!("{}\n\nFix: {}", finding.message, finding.fix)},
        "locations": [location],
    });
    if let Some(index) = LINTS.iter().position(|lint| lint.id == finding.id) {
        result["ruleIndex"] = json!(index);
    }
    result
}

/// A path as a relative URI reference; absolute paths become file URIs.
fn uri(path: &str) -> String {
    let mut uri = String::new();
    if path.starts_with('/') {
        uri.push_str("file://");
    }
    for byte in path.strip_prefix("./").unwrap_or(path).bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}
