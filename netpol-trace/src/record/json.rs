//! JSON that is safe to show on a terminal, and helpers to build it.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Value, json};

use super::Record;
use crate::text;

/// Removes nulls, and objects that are empty without them.
pub(super) fn compact(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let known = map.into_iter().map(|(key, value)| (key, compact(value)));
            Value::Object(known.filter(|(_, value)| !matches!(value, Value::Null) && *value != json!({})).collect())
        }
        value => value,
    }
}

/// Returns the native record for use inside another format. Labels become a list of `key=value`: as an object, each key, which any
/// tenant may choose, would become a field of the store.
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

/// Appends `value` as JSON without characters that a terminal would act on.
pub(super) fn write(value: &impl Serialize, out: &mut Vec<u8>) -> serde_json::Result<()> {
    let start = out.len();
    value.serialize(&mut serde_json::Serializer::new(&mut *out))?;
    // Nearly every line is plain ASCII, and one scan of the line costs less than a scan of each string.
    let json = &out[start..];
    if json.is_ascii() && memchr::memchr(0x7f, json).is_none() {
        return Ok(());
    }
    out.truncate(start);
    value.serialize(&mut serde_json::Serializer::with_formatter(out, TerminalSafe))
}

/// Escapes every character that [`text::is_unsafe`] names. JSON itself escapes only the control characters below U+0020.
struct TerminalSafe;

impl Formatter for TerminalSafe {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut written = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| text::is_unsafe(*c)) {
            writer.write_all(&fragment.as_bytes()[written..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            written = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[written..])
    }

    /// A fragment is the cached JSON of a [`Part`]. Characters beyond ASCII stand in its strings only, so it is escaped as a string is.
    fn write_raw_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        self.write_string_fragment(writer, fragment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Part;

    /// Text with and without a character beyond ASCII: both ways through `write`.
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

    #[test]
    fn shared_or_not_it_is_the_same_json() {
        // A mark that would turn the direction of a terminal's text.
        let one = Part::new(vec!["a \"b\"\n", "\u{202e}"]);
        let mut line = Vec::new();
        write(&one, &mut line).unwrap();
        let two = one.clone();
        for part in [&one, &two, &one] {
            let mut copy = Vec::new();
            write(part, &mut copy).unwrap();
            assert_eq!(line, copy);
        }
        assert_eq!(String::from_utf8(line).unwrap(), r#"["a \"b\"\n","\u202e"]"#);
    }
}
