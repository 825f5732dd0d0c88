//! The native encoding: one JSON object a line, at most 16 KiB.

use super::{Body, Record};

/// Octets of a line with its newline.
pub const MAX_LINE: usize = 16 * 1024;
/// Policies that a shortened record keeps per side.
const KEPT_POLICIES: usize = 8;

/// Appends `record` as one line to `out`. A record too long for a line is shortened and says so.
pub fn line(record: &Record, out: &mut Vec<u8>) -> serde_json::Result<()> {
    let start = out.len();
    serde_json::to_writer(&mut *out, record)?;
    out.push(b'\n');
    if out.len() - start > MAX_LINE {
        out.truncate(start);
        serde_json::to_writer(&mut *out, &shortened(record.clone()))?;
        out.push(b'\n');
    }
    Ok(())
}

/// Without labels, and with the first policies of each side only: what is left is bounded by the length of names.
fn shortened(mut record: Record) -> Record {
    let (truncated, ends, verdict) = match &mut record.body {
        Body::Drop(drop) => (&mut drop.truncated, [&mut drop.source, &mut drop.destination], &mut drop.verdict),
        Body::Unanswered(silent) => {
            (&mut silent.truncated, [&mut silent.source, &mut silent.destination], &mut silent.verdict)
        }
        Body::PolicyChange(change) => {
            change.truncated = true;
            change.rules_removed.truncate(KEPT_POLICIES);
            change.rules_added.truncate(KEPT_POLICIES);
            change.fields.truncate(KEPT_POLICIES);
            return record;
        }
        Body::Loss(_) | Body::Status(_) => return record,
    };
    *truncated = true;
    for end in ends {
        if let Some(pod) = &mut end.pod {
            pod.labels.clear();
        }
    }
    if let Some(verdict) = verdict {
        for side in [&mut verdict.egress, &mut verdict.ingress] {
            side.isolated_by.truncate(KEPT_POLICIES);
            if let Some(nearest) = &mut side.nearest {
                nearest.misses.truncate(KEPT_POLICIES);
                for miss in &mut nearest.misses {
                    for text in [&mut miss.field, &mut miss.want, &mut miss.have] {
                        text.truncate(text.floor_char_boundary(200));
                    }
                }
            }
        }
        verdict.notes.truncate(KEPT_POLICIES);
    }
    record
}
