//! Records on paper and in every format: the published schema, the page about them, and strangers' strings.

mod hostile;
mod metrics;
mod page;

use netpol_trace::record::Record;

/// Records that a real run wrote, one of each kind at least.
fn examples() -> Vec<Record> {
    let lines = include_str!("../../../tests/golden/records.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
