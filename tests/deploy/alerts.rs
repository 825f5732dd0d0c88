//! The alerts: each links to its section of the runbook and has series in promtool's tests, and the chart installs the same rules.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use netpol_trace_tests::cluster::programs::HELM;
use netpol_trace_tests::{cluster::built, require};
use serde_json::Value;

use super::render::{deploy, documents, helm};

/// Reads a YAML file with one document.
fn file(name: &str) -> Result<Value> {
    let text = fs::read_to_string(deploy().join(name))?;
    documents(&text)?.into_iter().next().with_context(|| format!("{name} is empty"))
}

fn alerts() -> Result<Vec<Value>> {
    let file = file("prometheus/alerts.yaml")?;
    let groups = file["groups"].as_array().context("groups")?;
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
    Ok(rules.filter(|rule| rule["alert"].is_string()).cloned().collect())
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn alerts_lead_to_their_section_of_the_runbook() -> Result<()> {
    let runbook = fs::read_to_string(deploy().with_file_name("docs/runbook.md"))?;
    let anchors: BTreeSet<String> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let page = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/runbook.md#");
    let mut linked = BTreeSet::new();
    for alert in alerts()? {
        let name = alert["alert"].as_str().context("a name")?;
        let url = alert.pointer("/annotations/runbook_url").and_then(Value::as_str);
        let section = url.and_then(|url| url.strip_prefix(page)).with_context(|| format!("{name}: {url:?}"))?;
        assert_eq!(section, name.to_lowercase(), "the link leads to another alert's section");
        assert!(anchors.contains(section), "{name}: docs/runbook.md has no section {section}");
        linked.insert(section.to_owned());
    }
    assert!(linked.len() >= 11, "{linked:?}");
    assert_eq!(linked, anchors, "a section that no alert leads to");
    Ok(())
}

/// promtool runs the tests: `cargo test -p netpol-trace-tests --test siem the_alert_rules_hold`.
#[test]
fn each_alert_is_seen_to_fire_and_not_to_fire() -> Result<()> {
    let tests = file("prometheus/alerts.test.yaml")?;
    let tests = tests["tests"].as_array().context("tests")?;
    let checks: Vec<&Value> =
        tests.iter().flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten()).collect();
    for alert in alerts()? {
        let of_this = || checks.iter().filter(|check| check["alertname"] == alert["alert"]);
        let fires = |check: &&&Value| check["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
        assert!(of_this().any(|check| fires(&check)), "{}: never expected to fire", alert["alert"]);
        // These two don't compare with an earlier time.
        let plain = ["NetpolTraceSinkFailing", "NetpolTraceAttributionStale"].map(Value::from);
        let quiet = of_this().any(|check| !fires(&check));
        assert!(quiet || plain.contains(&alert["alert"]), "{}: never expected to be quiet", alert["alert"]);
    }
    // A counter with labels has no sample before its first event, so a series that begins with 0 would hide a wrong rule.
    for test in tests {
        for series in test["input_series"].as_array().context("series")? {
            let (name, values) = (series["series"].as_str().context("a name")?, series["values"].to_string());
            let born_late = name.starts_with("netpol_trace_denied_packets_total");
            assert!(!born_late || values.trim_matches('"').starts_with('_'), "{name} begins with a value: {values}");
        }
    }
    Ok(())
}

/// The chart installs the rules of the file, not a second copy.
#[test]
fn the_chart_brings_the_same_rules() -> Result<()> {
    let program = require!(built(&HELM));
    let set = ["prometheusRule.enabled=true", "prometheusRule.labels={\"release\":\"monitoring\"}"];
    let rule = &helm(&program, &set)?["PrometheusRule netpol-trace"];
    assert_eq!(rule["spec"], file("prometheus/alerts.yaml")?);
    assert_eq!(rule["apiVersion"], "monitoring.coreos.com/v1");
    assert_eq!(rule["metadata"]["labels"]["release"], "monitoring");
    Ok(())
}

/// Prometheus adds a pod's labels to its metrics. The alerts use the metrics' own label `namespace`, which must win.
#[test]
fn the_pod_monitors_keep_the_label_namespace() -> Result<()> {
    let component = file("kustomize/components/pod-monitor/podmonitor.yaml")?;
    assert_eq!(component.pointer("/spec/podMetricsEndpoints/0/honorLabels"), Some(&true.into()));
    let program = require!(built(&HELM));
    let monitor = &helm(&program, &["podMonitor.enabled=true"])?["PodMonitor netpol-trace"];
    assert_eq!(monitor.pointer("/spec/podMetricsEndpoints/0/honorLabels"), Some(&true.into()));
    Ok(())
}
