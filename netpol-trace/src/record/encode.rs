//! Records as lines: one JSON object each, at most 16 KiB, in one of several formats.

use std::io;
use std::str::FromStr;

use serde::Serialize;
use serde_json::ser::Formatter;

use super::{Body, Record};

/// An encoding of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The record as docs/records.md has it.
    Native,
}

impl Format {
    pub const ALL: [Format; 1] = [Format::Native];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Native => "native",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let names = || Format::ALL.map(Format::as_str).join(", ");
        let found = Format::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no format: one of {} is", names()))
    }
}

/// Octets of a line with its newline.
pub const MAX_LINE: usize = 16 * 1024;
/// Policies that a shortened record keeps per side.
const KEPT_POLICIES: usize = 8;

/// Appends `record` as one line to `out`. A record too long for a line is shortened and says so.
pub fn line(format: Format, record: &Record, out: &mut Vec<u8>) -> serde_json::Result<()> {
    let start = out.len();
    object(format, record, out)?;
    if out.len() - start >= MAX_LINE {
        out.truncate(start);
        object(format, &shortened(record.clone()), out)?;
    }
    out.push(b'\n');
    Ok(())
}

fn object(format: Format, record: &Record, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match format {
        Format::Native => json(record, out),
    }
}

/// Appends `value` as JSON in which no character can do anything to a terminal.
fn json(value: &impl Serialize, out: &mut Vec<u8>) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, Harmless))
}

/// JSON escapes the control characters below U+0020 only. Those above, and the marks that turn the direction of text, are data
/// too, yet a terminal that a line is shown on would obey them.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut written = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| is_harmful(*c)) {
            writer.write_all(&fragment.as_bytes()[written..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            written = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[written..])
    }
}

/// DEL, C1 controls, line separators, direction and other invisible marks, tags.
fn is_harmful(c: char) -> bool {
    matches!(c, '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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
