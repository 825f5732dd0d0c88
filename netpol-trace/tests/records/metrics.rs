//! docs/metrics.md lists the metrics of the catalogue.

use std::collections::BTreeSet;

use netpol_trace::metrics::catalogue::ALL;

const PAGE: &str = include_str!("../../../docs/metrics.md");

/// Each metric has a row with its type and labels, and each row a metric.
#[test]
fn the_page_has_every_metric() {
    let rows: BTreeSet<String> = PAGE
        .lines()
        .filter(|line| line.starts_with("| `netpol_trace_"))
        .map(|line| line.split('|').skip(1).take(3).map(str::trim).collect::<Vec<_>>().join(" | "))
        .collect();
    let metrics: BTreeSet<String> = ALL
        .iter()
        .map(|metric| {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("`{}` | {} | {}", metric.name, metric.kind.as_str(), labels.join(", ")).trim_end().to_owned()
        })
        .collect();
    let rows: BTreeSet<String> = rows.iter().map(|row| row.trim_end().to_owned()).collect();
    let missing: Vec<_> = metrics.difference(&rows).collect();
    let unknown: Vec<_> = rows.difference(&metrics).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "missing in docs/metrics.md: {missing:#?}\nno such metric: {unknown:#?}"
    );
}
