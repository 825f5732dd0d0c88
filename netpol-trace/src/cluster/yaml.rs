//! Parses YAML and JSON into a tree in which every value has its line, so that messages can name it.
//!
//! Scalars resolve as kubectl resolves them (go-yaml, YAML 1.1): a plain `yes` is a boolean, `1.10` a number. The
//! text is untrusted input: depth, size and the nodes that aliases may copy are bounded, and a repeated key is an error.

mod de;
mod events;
mod json;
mod scalar;

use std::fmt;

pub use de::{Error as DecodeError, decode};

/// Deepest nesting, as in serde_json. No Kubernetes object is nested deeper.
pub const MAX_DEPTH: usize = 128;
/// Nodes that aliases and merge keys may copy in one document. Hand-written manifests copy some hundreds.
pub const MAX_ALIASED_NODES: usize = 200_000;
/// Nodes in one document: a `kubectl get -o yaml` list of some 20,000 pods.
pub const MAX_NODES: usize = 16_000_000;
/// Bytes of one input.
pub const MAX_BYTES: usize = 256 << 20;

/// One value with its line.
#[derive(Debug, Clone, PartialEq)]
pub struct YamlNode {
    /// 1-based.
    pub line: u32,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    /// `raw` is the plain YAML text that was read as a boolean.
    Bool {
        value: bool,
        raw: Option<Box<str>>,
    },
    /// `raw` as for `Bool`.
    Number {
        value: serde_json::Number,
        raw: Option<Box<str>>,
    },
    String(Box<str>),
    Sequence(Vec<YamlNode>),
    Mapping(Vec<(YamlKey, YamlNode)>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlKey {
    pub name: Box<str>,
    pub line: u32,
}

/// One document of an input.
#[derive(Debug)]
pub struct Document {
    /// 1-based, among the documents that are not empty.
    pub number: u32,
    pub root: YamlNode,
}

/// The text is neither YAML nor JSON, or exceeds a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// 1-based; counts the documents before it.
    pub document: u32,
    /// 1-based.
    pub line: u32,
    pub message: String,
}

/// One step of a field path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Field(String),
    Index(usize),
}

/// A field path, displayed as `spec.ingress[0].from`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(pub Vec<Step>);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                // A label key has dots and slashes, so it is quoted.
                Step::Field(name) if name.contains(['.', '/', '[', ']']) || name.is_empty() => write!(f, "[{name:?}]")?,
                Step::Field(name) => write!(f, "{}{name}", if i == 0 { "" } else { "." })?,
            }
        }
        Ok(())
    }
}

impl Path {
    pub fn field(&self, name: &str) -> Path {
        self.clone().push(Step::Field(name.to_owned()))
    }

    pub fn index(&self, index: usize) -> Path {
        self.clone().push(Step::Index(index))
    }

    fn push(mut self, step: Step) -> Path {
        self.0.push(step);
        self
    }

    pub fn join(&self, rest: &Path) -> Path {
        Path(self.0.iter().chain(&rest.0).cloned().collect())
    }

    /// Reads what [`Path`]'s `Display` writes.
    pub fn parse(text: &str) -> Path {
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                rest = after;
            } else if let Some(after) = rest.strip_prefix('[') {
                let (inner, tail) = match after.strip_prefix('"').and_then(|quoted| quoted.split_once("\"]")) {
                    Some((name, tail)) => (Step::Field(name.to_owned()), tail),
                    None => {
                        let (number, tail) = after.split_once(']').unwrap_or((after, ""));
                        (number.parse().map_or_else(|_| Step::Field(number.to_owned()), Step::Index), tail)
                    }
                };
                steps.push(inner);
                rest = tail;
            } else {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let (name, tail) = rest.split_at(end);
                steps.push(Step::Field(name.to_owned()));
                rest = tail;
            }
        }
        Path(steps)
    }
}

impl YamlNode {
    pub fn get(&self, name: &str) -> Option<&YamlNode> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(key, _)| *key.name == *name).map(|(_, node)| node),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The node at `path`, if it exists.
    pub fn at(&self, path: &Path) -> Option<&YamlNode> {
        path.0.iter().try_fold(self, |node, step| match (step, &node.value) {
            (Step::Field(name), _) => node.get(name),
            (Step::Index(index), Value::Sequence(items)) => items.get(*index),
            _ => None,
        })
    }

    /// The value as YAML in one line (flow style), cut at about `most` bytes.
    pub fn flow(&self, most: usize) -> String {
        let mut text = String::new();
        self.write_flow(most, &mut text);
        text
    }

    fn write_flow(&self, most: usize, text: &mut String) {
        let short = |value: &str| scalar_text(&value.chars().take(most).collect::<String>());
        match &self.value {
            _ if text.len() > most => text.push('…'),
            Value::Null => text.push('~'),
            Value::Bool { value, .. } => text.push_str(&value.to_string()),
            Value::Number { value, .. } => text.push_str(&value.to_string()),
            Value::String(value) => text.push_str(&short(value)),
            Value::Sequence(items) => {
                text.push('[');
                for (i, item) in items.iter().enumerate() {
                    text.push_str(if i == 0 { "" } else { ", " });
                    item.write_flow(most, text);
                    if text.ends_with('…') {
                        break;
                    }
                }
                text.push(']');
            }
            Value::Mapping(entries) => {
                text.push('{');
                for (i, (key, value)) in entries.iter().enumerate() {
                    text.push_str(if i == 0 { "" } else { ", " });
                    text.push_str(&short(&key.name));
                    text.push_str(": ");
                    value.write_flow(most, text);
                    if text.ends_with('…') {
                        break;
                    }
                }
                text.push('}');
            }
        }
    }

    /// The line of the key of the field at `path`, or of its nearest existing parent.
    pub fn line_of(&self, path: &Path) -> u32 {
        let (mut node, mut line) = (self, self.line);
        for step in &path.0 {
            match (step, &node.value) {
                (Step::Field(name), Value::Mapping(entries)) => {
                    let Some((key, value)) = entries.iter().find(|(key, _)| *key.name == **name) else { break };
                    (node, line) = (value, key.line);
                }
                (Step::Index(index), Value::Sequence(items)) => {
                    let Some(item) = items.get(*index) else { break };
                    (node, line) = (item, item.line);
                }
                _ => break,
            }
        }
        line
    }
}

/// `text` as a scalar of a manifest, quoted if plain text would mean something else.
pub fn scalar_text(text: &str) -> String {
    let plain = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
        && !text.starts_with('-')
        && matches!(scalar::resolve(text), Ok(Value::String(_)));
    if plain { text.to_owned() } else { format!("{text:?}") }
}

/// Reads all documents of `bytes`. A broken document does not prevent the following ones from being read.
pub fn parse(bytes: &[u8]) -> Vec<Result<Document, SyntaxError>> {
    let whole = |line, message| vec![Err(SyntaxError { document: 1, line, message })];
    if bytes.len() > MAX_BYTES {
        return whole(
            1,
            format!("{} MiB is more than the {} MiB read from one file", bytes.len() >> 20, MAX_BYTES >> 20),
        );
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + valid.iter().filter(|b| **b == b'\n').count();
            return whole(u32::try_from(line).unwrap_or(u32::MAX), "not UTF-8 text; save the file as UTF-8".to_owned());
        }
    };
    let mut json_error = None;
    if text.trim_start().starts_with(['{', '[']) {
        match json::parse(text) {
            Ok(documents) => return documents.into_iter().map(Ok).collect(),
            // `{a: b}` is no JSON, but YAML's flow style.
            Err(error) => json_error = Some(error),
        }
    }
    let documents = yaml(text);
    match json_error {
        // Neither JSON nor YAML: text that starts like JSON gets the JSON reader's error.
        Some(error) if documents.iter().any(Result::is_err) => vec![Err(error)],
        _ => documents,
    }
}

fn yaml(text: &str) -> Vec<Result<Document, SyntaxError>> {
    let mut documents = Vec::new();
    for (first_line, chunk) in split(text) {
        let before = u32::try_from(documents.len()).unwrap_or(u32::MAX);
        match events::read(chunk, first_line) {
            Ok(roots) => {
                for (root, number) in roots.into_iter().zip(before + 1..) {
                    documents.push(Ok(Document { number, root }));
                }
            }
            Err(mut error) => {
                error.document = before + 1;
                error.message.insert_str(0, "not YAML: ");
                if chunk.contains("{{") {
                    error.message.push_str("; `{{` looks like a Helm template: render it first (helm template)");
                }
                documents.push(Err(error));
            }
        }
    }
    documents
}

/// Splits `text` at its `---` lines, and returns each piece with the number of its first line. The marker at the start of a line
/// always ends a document, so that a broken document cannot hide the next one.
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut at, mut line) = (0, 1, 0, 1);
    // Directives and comments belong to the `---` that follows them.
    let mut only_prologue = true;
    for row in text.split_inclusive('\n') {
        let marker =
            row.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && !only_prologue {
            pieces.push((start_line, &text[start..at]));
            (start, start_line) = (at, line);
        }
        if marker {
            only_prologue = false;
        } else {
            let trimmed = row.trim();
            only_prologue &= trimmed.is_empty() || trimmed.starts_with(['#', '%']);
        }
        at += row.len();
        line += 1;
    }
    pieces.push((start_line, &text[start..]));
    pieces
}

#[cfg(test)]
mod tests;
