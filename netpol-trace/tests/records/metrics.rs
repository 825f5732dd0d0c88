//! docs/metrics.md lists the metrics of the catalogue.

use std::collections::BTreeSet;

use netpol_trace::metrics::catalogue::ALL;
use netpol_trace::model::{LossKind, LossStage};

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

/// The rows of the table of losses: stage and reasons, and what they count.
fn losses() -> Vec<(String, String, String)> {
    let table = PAGE.split_once("| stage | reason |").expect("a table of losses").1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut losses = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for reason in cells[2].split(',') {
            let name = |cell: &str| cell.trim().trim_matches('`').to_owned();
            losses.push((name(cells[1]), name(reason), cells[3].to_owned()));
        }
    }
    losses
}

/// Each kind of loss that the metric counts has its row, which names what is counted, and no row is about a loss that cannot happen.
#[test]
fn the_page_has_every_loss() {
    let rows = losses();
    let kinds = || LossKind::ALL.iter().filter(|kind| kind.in_metrics);
    for kind in kinds() {
        let row =
            rows.iter().find(|(stage, reason, _)| (&**stage, &**reason) == (kind.stage.as_str(), kind.reason.as_str()));
        let (_, _, counts) = row.unwrap_or_else(|| panic!("docs/metrics.md has no row for {kind:?}"));
        // Records of a sink stand for packets.
        let unit = if kind.stage == LossStage::Sink { "records" } else { kind.unit.as_str() };
        assert!(counts.contains(unit), "docs/metrics.md says that {kind:?} counts {counts}");
    }
    for (stage, reason, _) in &rows {
        let is_row_of = |kind: &LossKind| kind.stage.as_str() == stage && kind.reason.as_str() == reason;
        assert!(kinds().any(is_row_of), "docs/metrics.md has a row for {stage} {reason}, which no loss has");
    }
}
