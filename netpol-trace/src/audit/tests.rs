//! Makes each fault that a log can have out of a log that is complete.

use super::{Audit, AuditReport, Completeness};

/// Two drops of three and one packets, a declared loss of two, and totals that agree: 8 matched, 2 of them filtered.
const LOG: &str = r#"{"schema":"netpol-trace/v1","kind":"status","run":"a","id":"a/1","seq":1,"time":"2026-11-21T10:00:00Z","node":"n1","phase":"started","version":"0.1.0","totals":{"kernel":{"seen":0,"matched":0,"emitted":0,"aggregated":0,"lost":0,"recursion_misses":0},"agent":{"read":0,"written":0,"filtered":0,"held":0,"lost":0}},"causes":{},"hooks":[],"sources":[]}
{"schema":"netpol-trace/v1","kind":"drop","run":"a","id":"a/2","seq":2,"time":"2026-11-21T10:00:01Z","node":"n1","count":3,"bytes":180,"cause":"policy","action":"drop","source":{"kind":"external","ip":"192.0.2.1"},"destination":{"kind":"external","ip":"192.0.2.2"},"network":{"transport":"tcp","family":"ipv4","length":60},"kernel":{"mechanism":"nftables"},"enrichment":"complete"}
{"schema":"netpol-trace/v1","kind":"loss","run":"a","id":"a/3","seq":3,"time":"2026-11-21T10:00:02Z","node":"n1","stage":"kernel_ring","reason":"full","count":2}
{"schema":"netpol-trace/v1","kind":"drop","run":"a","id":"a/4","seq":4,"time":"2026-11-21T10:00:03Z","node":"n1","count":1,"bytes":60,"cause":"policy","action":"drop","source":{"kind":"external","ip":"192.0.2.1"},"destination":{"kind":"external","ip":"192.0.2.2"},"network":{"transport":"tcp","family":"ipv4","length":60},"kernel":{"mechanism":"nftables"},"enrichment":"complete"}
{"schema":"netpol-trace/v1","kind":"status","run":"a","id":"a/5","seq":5,"time":"2026-11-21T10:00:04Z","node":"n1","phase":"stopped","version":"0.1.0","totals":{"kernel":{"seen":9,"matched":8,"emitted":6,"aggregated":0,"lost":2,"recursion_misses":0},"agent":{"read":6,"written":6,"filtered":2,"held":0,"lost":0}},"causes":{"policy":4,"not_policy":2},"hooks":[],"sources":[]}
"#;

fn audit(log: &str) -> AuditReport {
    let mut audit = Audit::default();
    let read = crate::recorded::each(log.as_bytes(), |number, record| match record {
        Ok(record) => audit.record(&format!("log:{number}"), &record),
        Err(line) => audit.broken(&format!("log:{number}"), &line),
    });
    read.1.unwrap();
    audit.report()
}

fn lines() -> Vec<&'static str> {
    LOG.lines().collect()
}

#[test]
fn a_whole_log_is_complete() {
    let report = audit(LOG);
    assert_eq!(report.answer, Completeness::Complete, "{}", report.text());
    assert_eq!((report.runs[0].recorded, report.runs[0].declared_lost), (4, 2));
}

#[test]
fn any_line_that_is_missing_is_noticed() {
    for at in 0..lines().len() {
        let mut rest = lines();
        rest.remove(at);
        let report = audit(&rest.join("\n"));
        // Without its first or last line a log begins or ends inside a run, as a rotated one does.
        let expected = if at == 0 || at == lines().len() - 1 {
            Completeness::CompleteButForGaps
        } else {
            Completeness::Incomplete
        };
        assert_eq!(report.answer, expected, "without line {}:\n{}", at + 1, report.text());
    }
}

#[test]
fn any_number_that_was_changed_is_noticed() {
    for (from, to) in [
        ("\"count\":3", "\"count\":2"),
        ("\"count\":2", "\"count\":1"),
        ("\"written\":6", "\"written\":7"),
        ("\"filtered\":2", "\"filtered\":1"),
        ("\"matched\":8", "\"matched\":9"),
        ("\"seen\":9", "\"seen\":7"),
        ("\"read\":6", "\"read\":7"),
        ("\"emitted\":6", "\"emitted\":5"),
        ("\"seq\":4", "\"seq\":9"),
        ("\"phase\":\"stopped\"", "\"phase\":\"nonsense\""),
    ] {
        let report = audit(&LOG.replacen(from, to, 1));
        assert_eq!(report.answer, Completeness::Incomplete, "{from} -> {to} went unnoticed:\n{}", report.text());
    }
}

#[test]
fn late_and_duplicate_records_count_once() {
    let mut order = lines();
    order.swap(1, 3);
    order.push(order[2]);
    let report = audit(&order.join("\n"));
    assert_eq!(report.answer, Completeness::Complete, "{}", report.text());
    assert_eq!(report.runs[0].duplicates, 1);
}

#[test]
fn a_restart_must_be_declared() {
    let next = LOG.replace("\"a\"", "\"b\"").replace("a/", "b/").replace("T10:", "T11:");
    let report = audit(&format!("{LOG}{next}"));
    assert_eq!(report.answer, Completeness::Incomplete, "{}", report.text());
    assert!(report.text().contains("the time without a hook from 2026-11-21T10:00:04Z to 2026-11-21T11:00:00Z"));

    let declared = next.replacen(
        r#""stage":"kernel_ring","reason":"full","count":2"#,
        r#""stage":"not_attached","reason":"restart""#,
        1,
    );
    let declared = declared.replace("\"matched\":8", "\"matched\":6").replace("\"lost\":2", "\"lost\":0");
    let report = audit(&format!("{LOG}{declared}"));
    assert_eq!(report.answer, Completeness::CompleteButForGaps, "{}", report.text());
}

#[test]
fn runs_of_other_nodes_are_no_restart() {
    let other = LOG.replace("\"a\"", "\"b\"").replace("a/", "b/").replace("n1", "n2");
    let report = audit(&format!("{LOG}{other}"));
    assert_eq!(report.answer, Completeness::Complete, "{}", report.text());
}

#[test]
fn what_is_not_a_log_is_not_complete() {
    assert_eq!(audit("").answer, Completeness::Incomplete);
    let report = audit("{\"kind\":\"half\u{1b}[31m");
    assert_eq!(report.answer, Completeness::Incomplete);
    assert!(!report.text().contains('\u{1b}'), "{}", report.text());
}
