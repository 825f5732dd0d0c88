use expect_test::{Expect, expect};

use crate::cluster::manifests::load_bytes;
use crate::policy::lint::*;

mod articles;
mod catalogue_cases;
mod clean;

/// The text that `netpol-trace lint --severity info` prints for a file.
fn check(yaml: &str, expected: Expect) {
    let loaded = load_bytes("netpol.yaml", yaml.as_bytes());
    let findings = lint(&loaded, &[]);
    for finding in &findings {
        assert!(catalogue::entry(finding.id).is_some(), "{}", finding.id);
    }
    expected.assert_eq(&text(&findings, &loaded, Severity::Info));
}

/// Findings of warning and above, as `line id`.
fn ids(yaml: &str) -> Vec<String> {
    let loaded = load_bytes("netpol.yaml", yaml.as_bytes());
    let findings = lint(&loaded, &[]);
    let shown = findings.iter().filter(|f| f.severity >= Severity::Warning);
    shown.map(|f| format!("{} {}", f.place.line.unwrap_or_default(), f.id)).collect()
}

#[test]
fn sarif_is_what_code_hosts_read() {
    let loaded = load_bytes(
        "a b/ünï.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {ingress: {}}\n",
    );
    let log: serde_json::Value = serde_json::from_str(&sarif(&lint(&loaded, &[]), Severity::Info).unwrap()).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let result = &run["results"][0];
    assert_eq!(result["ruleId"], "shape");
    assert_eq!(result["level"], "error");
    let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(run["tool"]["driver"]["rules"][index]["id"], "shape");
    let location = &result["locations"][0];
    assert_eq!(location["physicalLocation"]["artifactLocation"]["uri"], "a%20b/%C3%BCn%C3%AF.yaml");
    assert_eq!(location["physicalLocation"]["region"]["startLine"], 4);
    assert_eq!(location["logicalLocations"][0]["fullyQualifiedName"], "NetworkPolicy p spec.ingress");
}

#[test]
fn json_holds_findings_and_sums() {
    let loaded = load_bytes(
        "x.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {ingress: {}}\n",
    );
    let report: serde_json::Value =
        serde_json::from_str(&json(&lint(&loaded, &[]), &loaded, Severity::Info).unwrap()).unwrap();
    assert_eq!(report["findings"][0]["id"], "shape");
    assert_eq!(report["findings"][0]["severity"], "error");
    assert_eq!(report["findings"][0]["file"], "x.yaml");
    assert_eq!(report["findings"][0]["line"], 4);
    assert_eq!(report["findings"][0]["field"], "spec.ingress");
    assert_eq!(report["summary"]["error"], 1);
}

#[test]
fn strangers_text_is_escaped() {
    let loaded = load_bytes(
        "x\u{1b}[2J.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: \"p\\e[31m\", \"\\e]0;x\": 1}\nspec: {podSelector: {matchLabels: {\"a\\nb\": c}}}\n",
    );
    let text = text(&lint(&loaded, &[]), &loaded, Severity::Info);
    assert!(text.lines().all(|line| !line.chars().any(char::is_control)), "{text:?}");
    assert!(text.contains("error[shape]"), "{text}");
}

#[test]
fn a_finding_can_be_disabled() {
    let loaded = load_bytes(
        "x.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {ingress: {}}\n",
    );
    assert_eq!(lint(&loaded, &["shape".to_owned()]), []);
}
