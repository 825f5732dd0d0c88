//! Records as lines: one JSON object each, at most 16 KiB, in one of several formats.

mod ecs;
mod message;
mod ocsf;
pub mod otel;
mod view;

use std::str::FromStr;

use super::Record;
use super::json::write;
use super::shorten::{ShortenStep, shortened};
use crate::model::closed_set::closed_set;

closed_set! {
    /// An encoding of records.
    pub enum Format {
        /// The record as docs/records.md has it.
        Native = "native",
        /// Elastic Common Schema.
        Ecs = "ecs",
        /// Open Cybersecurity Schema Framework.
        Ocsf = "ocsf",
        /// OpenTelemetry's log data model, as OTLP's JSON.
        Otel = "otel",
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let names = || Format::ALL.iter().map(|format| format.as_str()).collect::<Vec<_>>().join(", ");
        let found = Format::ALL.iter().copied().find(|format| format.as_str() == text);
        found.ok_or_else(|| format!("unknown format {text:?}: expected one of {}", names()))
    }
}

/// Longest line in bytes, with its newline.
pub const MAX_LINE: usize = 16 * 1024;

/// Appends `record` as one line to `out`. A record that is too long is shortened step by step, and marked as `truncated`.
pub fn line(format: Format, record: &Record, out: &mut Vec<u8>) -> serde_json::Result<()> {
    let start = out.len();
    object(format, record, out)?;
    for step in ShortenStep::ALL {
        if out.len() - start < MAX_LINE {
            break;
        }
        out.truncate(start);
        object(format, &shortened(record.clone(), step), out)?;
    }
    out.push(b'\n');
    Ok(())
}

fn object(format: Format, record: &Record, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match format {
        Format::Native => write(record, out),
        Format::Ecs => write(&ecs::event(record), out),
        Format::Ocsf => write(&ocsf::event(record), out),
        Format::Otel => write(&otel::line(record), out),
    }
}
