//! Records as lines: one JSON object each, at most 16 KiB, in one of several formats.

use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Body, Part, PolicyChange, Record, Shared, Status, ecs, ocsf, otel};

/// An encoding of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The record as docs/records.md has it.
    Native,
    /// Elastic Common Schema.
    Ecs,
    /// Open Cybersecurity Schema Framework.
    Ocsf,
    /// OpenTelemetry's log data model, as OTLP's JSON.
    Otel,
}

impl Format {
    pub const ALL: [Format; 4] = [Format::Native, Format::Ecs, Format::Ocsf, Format::Otel];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Native => "native",
            Format::Ecs => "ecs",
            Format::Ocsf => "ocsf",
            Format::Otel => "otel",
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

/// Appends `record` as one line to `out`. A record too long for a line is shortened, step by step, and says so.
pub fn line(format: Format, record: &Record, out: &mut Vec<u8>) -> serde_json::Result<()> {
    let start = out.len();
    object(format, record, out)?;
    for step in Step::ALL {
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

/// Takes out what is not known, and objects that are empty then.
pub(super) fn compact(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let known = map.into_iter().map(|(key, value)| (key, compact(value)));
            Value::Object(known.filter(|(_, value)| !matches!(value, Value::Null) && *value != json!({})).collect())
        }
        value => value,
    }
}

/// The native record inside another format. Labels are a list of `key=value` there: as an object each of their keys, which anybody
/// may choose, would become a field of the store.
pub(super) fn embedded(record: &Record) -> Value {
    // Our own types always serialize.
    let mut value = serde_json::to_value(record).unwrap_or_default();
    for end in ["source", "destination"] {
        if let Some(labels) = value.pointer_mut(&format!("/{end}/pod/labels"))
            && let Some(map) = labels.as_object()
        {
            *labels = map.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        }
    }
    value
}

/// `value` as JSON that is put into lines as it is.
pub(super) fn raw(value: &impl Serialize) -> Option<Box<RawValue>> {
    let mut json = Vec::with_capacity(1024);
    write(value, &mut json).ok()?;
    RawValue::from_string(String::from_utf8(json).ok()?).ok()
}

/// Appends `value` as JSON in which no character can do anything to a terminal.
pub(super) fn write(value: &impl Serialize, out: &mut Vec<u8>) -> serde_json::Result<()> {
    let start = out.len();
    value.serialize(&mut serde_json::Serializer::new(&mut *out))?;
    // Nearly every line is of these, and to look once is less than to look at each text.
    let json = &out[start..];
    if json.is_ascii() && memchr::memchr(0x7f, json).is_none() {
        return Ok(());
    }
    out.truncate(start);
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

/// How a record too long for a line gets shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Step {
    Labels,
    Policies,
    Texts,
    /// What is left is bounded whatever is in it: some 40 texts of 40 octets, each of which JSON makes six at most.
    Least,
}

impl Step {
    const ALL: [Step; 4] = [Step::Labels, Step::Policies, Step::Texts, Step::Least];

    /// Policies, misses and notes that are kept.
    fn kept(self) -> usize {
        match self {
            Step::Labels => usize::MAX,
            Step::Policies => 8,
            Step::Texts | Step::Least => 1,
        }
    }

    /// Octets of a text.
    fn text(self) -> usize {
        match self {
            Step::Labels => usize::MAX,
            Step::Policies => 300,
            Step::Texts => 100,
            Step::Least => 40,
        }
    }
}

fn shortened(mut record: Record, step: Step) -> Record {
    let clip = |text: &mut String| text.truncate(text.floor_char_boundary(step.text()));
    let clip_shared = |text: &mut Shared| *text = text[..text.floor_char_boundary(step.text())].into();
    [&mut record.cluster, &mut record.node].into_iter().flatten().for_each(clip_shared);
    let (truncated, ends, verdict, hint) = match &mut record.body {
        Body::Drop(drop) => {
            (&mut drop.truncated, [&mut drop.source, &mut drop.destination], &mut drop.verdict, &mut drop.hint)
        }
        Body::Unanswered(silent) => (
            &mut silent.truncated,
            [&mut silent.source, &mut silent.destination],
            &mut silent.verdict,
            &mut silent.hint,
        ),
        Body::Loss(_) => return record,
        Body::Status(status) => {
            short_status(status, step);
            return record;
        }
        Body::PolicyChange(change) => {
            change.truncated = true;
            short_change(change, step);
            return record;
        }
    };
    *truncated = true;
    for end in ends {
        end.names.truncate(step.kept());
        end.names.iter_mut().for_each(clip);
        let mut texts: Vec<&mut String> = Vec::new();
        if let Some(pod) = end.pod.as_mut().map(Part::to_mut) {
            pod.labels.clear();
            texts.extend([&mut pod.namespace, &mut pod.name]);
            texts.extend(pod.uid.iter_mut().chain(&mut pod.node));
            texts.extend(pod.owner.iter_mut().flat_map(|owner| [&mut owner.kind, &mut owner.name]));
        }
        // Names are whole but in the last step: a name that is cut names something else.
        if step == Step::Least {
            texts.into_iter().for_each(clip);
            let service = end.service.iter_mut().flat_map(|service| [&mut service.namespace, &mut service.name]);
            end.node.iter_mut().chain(service).for_each(clip_shared);
        }
    }
    if let Some(hint) = hint.as_mut().map(Part::to_mut) {
        clip(&mut hint.message);
    }
    if step == Step::Least {
        *verdict = None;
    }
    if let Some(verdict) = verdict.as_mut().map(Part::to_mut) {
        for side in [&mut verdict.egress, &mut verdict.ingress] {
            side.isolated_by.truncate(step.kept());
            side.changed.truncate(step.kept());
            side.why.iter_mut().for_each(clip);
            if let Some(nearest) = &mut side.nearest {
                nearest.misses.truncate(step.kept());
                nearest
                    .misses
                    .iter_mut()
                    .flat_map(|miss| [&mut miss.field, &mut miss.want, &mut miss.have])
                    .for_each(clip);
            }
        }
        verdict.notes.truncate(step.kept());
        verdict.notes.iter_mut().for_each(clip);
    }
    record
}

fn short_status(status: &mut Status, step: Step) {
    let clip = |text: &mut String| text.truncate(text.floor_char_boundary(step.text().min(200)));
    let kept = step.kept().min(20);
    status.hooks.truncate(kept);
    status.hooks.iter_mut().filter_map(|hook| hook.detail.as_mut()).for_each(clip);
    status.sources.truncate(kept);
    for source in &mut status.sources {
        clip(&mut source.name);
        source.error.iter_mut().for_each(clip);
        for counts in [&mut source.objects, &mut source.skipped] {
            *counts = std::mem::take(counts).into_iter().take(kept).collect();
        }
    }
    status.sinks.truncate(kept);
    for sink in &mut status.sinks {
        clip(&mut sink.name);
        sink.error.iter_mut().for_each(clip);
    }
    status.not_recorded = std::mem::take(&mut status.not_recorded).into_iter().take(kept).collect();
    if step == Step::Least {
        // Kinds of objects are whatever a manifest calls them.
        status.not_recorded.clear();
        status
            .sources
            .iter_mut()
            .flat_map(|source| [&mut source.objects, &mut source.skipped])
            .for_each(BTreeMap::clear);
    }
}

fn short_change(change: &mut PolicyChange, step: Step) {
    let clip = |text: &mut String| text.truncate(text.floor_char_boundary(step.text()));
    let kept = step.kept().min(20);
    for rules in [&mut change.rules_removed, &mut change.rules_added] {
        rules.truncate(kept);
        rules.iter_mut().flat_map(|rule| [&mut rule.rule, &mut rule.allows]).for_each(clip);
    }
    change.fields.truncate(kept);
    change.fields.iter_mut().flat_map(|field| [&mut field.before, &mut field.after]).flatten().for_each(clip);
    for isolation in change.newly_isolates.iter_mut().chain(&mut change.no_longer_isolates) {
        isolation.workloads.truncate(kept);
        isolation.workloads.iter_mut().for_each(clip);
    }
    if step == Step::Least {
        clip(&mut change.namespace);
        [&mut change.policy, &mut change.uid].into_iter().flatten().for_each(clip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With and without a character beyond ASCII, which is where each text is looked at.
    #[test]
    fn no_character_does_anything_to_a_terminal() {
        for (text, json) in [
            ("plain \u{1b}[2J", r#""plain \u001b[2J""#),
            ("\u{7f}", r#""\u007f""#),
            ("\u{7f}ü\u{9b}", r#""\u007fü\u009b""#),
            ("\u{202e}\u{e0041}", r#""\u202e\udb40\udc41""#),
        ] {
            let mut line = b"before ".to_vec();
            write(&text, &mut line).unwrap();
            assert_eq!(String::from_utf8(line).unwrap(), format!("before {json}"));
        }
    }
}
