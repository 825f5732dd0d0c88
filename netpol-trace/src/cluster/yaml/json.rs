//! Reads JSON with serde_json, with the line of every value. A YAML parser would differ in tabs, escapes and long keys.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::io::Read;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Document, MAX_NODES, SyntaxError, Value, YamlKey, YamlNode};

/// Reads one or more JSON values that follow each other.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, SyntaxError> {
    let lines = LineCounter { line: Cell::new(1), newline: Cell::new(false) };
    let mut reader = serde_json::Deserializer::from_reader(Counting { rest: text.as_bytes(), lines: &lines });
    let mut documents: Vec<Document> = Vec::new();
    loop {
        let number = u32::try_from(documents.len()).unwrap_or(u32::MAX).saturating_add(1);
        if reader.end().is_ok() {
            return Ok(documents);
        }
        let nodes = Cell::new(0);
        let root = Seed { lines: &lines, nodes: &nodes }.deserialize(&mut reader).map_err(|error| {
            let line = u32::try_from(error.line()).unwrap_or(u32::MAX);
            // The line is a field of `SyntaxError`: serde_json's " at line 1 column 2" would repeat it.
            let text = error.to_string();
            let message = text.split(" at line ").next().unwrap_or(&text);
            SyntaxError { document: number, line, message: format!("not JSON: {message}") }
        })?;
        documents.push(Document { number, root });
    }
}

/// The line of the last byte read. A newline counts from the byte after it, because serde_json reads one byte ahead after a
/// number.
struct LineCounter {
    line: Cell<u32>,
    newline: Cell<bool>,
}

struct Counting<'a> {
    rest: &'a [u8],
    lines: &'a LineCounter,
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // One byte at a time: serde_json reads so (io::Bytes), and counting depends on it.
        let (Some(slot), Some((byte, rest))) = (buffer.first_mut(), self.rest.split_first()) else { return Ok(0) };
        if self.lines.newline.replace(*byte == b'\n') {
            self.lines.line.set(self.lines.line.get() + 1);
        }
        *slot = *byte;
        self.rest = rest;
        Ok(1)
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    lines: &'a LineCounter,
    nodes: &'a Cell<usize>,
}

impl Seed<'_> {
    fn node(&self, value: Value) -> YamlNode {
        YamlNode { line: self.lines.line.get(), value }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = YamlNode;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<YamlNode, D::Error> {
        self.nodes.set(self.nodes.get() + 1);
        if self.nodes.get() > MAX_NODES {
            return Err(D::Error::custom(format!("more than {MAX_NODES} values in one document")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = YamlNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<YamlNode, E> {
        Ok(self.node(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<YamlNode, E> {
        Ok(self.node(Value::Bool { value, raw: None }))
    }

    fn visit_u64<E>(self, value: u64) -> Result<YamlNode, E> {
        Ok(self.node(Value::Number { value: value.into(), raw: None }))
    }

    fn visit_i64<E>(self, value: i64) -> Result<YamlNode, E> {
        Ok(self.node(Value::Number { value: value.into(), raw: None }))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<YamlNode, E> {
        let value = serde_json::Number::from_f64(value).ok_or_else(|| E::custom("a number out of range"))?;
        Ok(self.node(Value::Number { value, raw: None }))
    }

    fn visit_str<E>(self, value: &str) -> Result<YamlNode, E> {
        Ok(self.node(Value::String(value.into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<YamlNode, A::Error> {
        let line = self.lines.line.get();
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(YamlNode { line, value: Value::Sequence(nodes) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<YamlNode, A::Error> {
        let line = self.lines.line.get();
        let mut nodes: Vec<(YamlKey, YamlNode)> = Vec::new();
        let mut seen = HashSet::new();
        while let Some(name) = entries.next_key::<String>()? {
            let key = YamlKey { name: name.into(), line: self.lines.line.get() };
            let value = entries.next_value_seed(self)?;
            if !seen.insert(key.name.clone()) {
                return Err(A::Error::custom(format!("duplicate key {:?}", key.name)));
            }
            nodes.push((key, value));
        }
        Ok(YamlNode { line, value: Value::Mapping(nodes) })
    }
}
