//! Records: the published schema, docs/records.md, docs/metrics.md, and untrusted strings in every format.

mod hostile;
mod metrics;
mod page;

use netpol_trace::record::Record;

/// Records that a real run wrote, at least one of each kind.
fn examples() -> Vec<Record> {
    let lines = include_str!("../../../tests/golden/records.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
