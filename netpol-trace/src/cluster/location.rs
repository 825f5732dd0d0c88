//! Locations in the input, and problems at them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::yaml::{Path, Step, Value, YamlNode};

/// A location in the input. Shown as `file:line`, with the document's number where the file has several, and the field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The path as given on the command line or found in a folder; `-` is standard input.
    pub file: Arc<PathBuf>,
    /// 1-based; `None` for the whole file.
    pub line: Option<u32>,
    /// 1-based; `None` in a file of one document.
    pub document: Option<u32>,
    /// As `spec.ingress[0].from[1]`; empty for the whole object.
    pub field: String,
}

impl Location {
    pub fn file(file: &Arc<PathBuf>) -> Location {
        Location { file: file.clone(), line: None, document: None, field: String::new() }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", crate::text::escape(&self.file.display().to_string()))?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(document) = self.document {
            write!(f, " (document {document})")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}", crate::text::escape(&self.field))?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warning,
    Error,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kinds of problems that callers distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// A path that can't be read, or a folder with nothing to read.
    Unreadable,
    /// Not YAML, not JSON, or not text.
    Syntax,
    /// An object that the API server would refuse: its kind, a type, or a value.
    Shape,
    /// A field that the API doesn't have; the object is used without it.
    UnknownField,
    /// An object that comes again later in the input; the last one is used.
    Duplicate,
}

/// A problem of the input. With severity error an object is missing from the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemKind,
    pub severity: Severity,
    pub place: Location,
    /// `NetworkPolicy staging/db-np`, as far as known; else empty.
    pub object: String,
    /// The object is a policy.
    pub is_policy: bool,
    pub message: String,
    /// What an unknown field holds, as YAML in one line, shortened.
    pub value: Option<String>,
}

impl fmt::Display for Problem {
    /// `file:line field: object: message`, safe for a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.object.is_empty() {
            write!(f, "{}: ", crate::text::escape(&self.object))?;
        }
        f.write_str(&crate::text::escape(&self.message))
    }
}

/// The lines of an object's fields, kept after its tree is dropped. Has keys and list items, but no values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FieldLines {
    line: u32,
    children: Box<[(Name, FieldLines)]>,
}

#[derive(Debug, Clone, PartialEq)]
enum Name {
    Field(Box<str>),
    Item,
}

impl FieldLines {
    pub fn of(node: &YamlNode) -> FieldLines {
        FieldLines::build(node, node.line)
    }

    fn build(node: &YamlNode, line: u32) -> FieldLines {
        let children = match &node.value {
            Value::Mapping(entries) => entries
                .iter()
                .map(|(key, value)| (Name::Field(key.name.clone()), FieldLines::build(value, key.line)))
                .collect(),
            Value::Sequence(items) => {
                items.iter().map(|item| (Name::Item, FieldLines::build(item, item.line))).collect()
            }
            _ => Box::default(),
        };
        FieldLines { line, children }
    }

    /// The line of the field at `path`, or of its nearest existing parent.
    pub fn line_of(&self, path: &Path) -> u32 {
        let mut at = self;
        for step in &path.0 {
            let Some(child) = at.child(step) else { break };
            at = child;
        }
        at.line
    }

    /// Whether the file has the field, even without a value.
    pub fn has(&self, path: &Path) -> bool {
        path.0.iter().try_fold(self, |at, step| at.child(step)).is_some()
    }

    fn child(&self, step: &Step) -> Option<&FieldLines> {
        let child = match step {
            Step::Index(index) => self.children.get(*index).filter(|(name, _)| *name == Name::Item),
            Step::Field(field) => {
                self.children.iter().find(|(name, _)| matches!(name, Name::Field(f) if **f == **field))
            }
        };
        child.map(|(_, child)| child)
    }
}
