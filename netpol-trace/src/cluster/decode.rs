//! Kubernetes objects to [`model`](crate::model): what every kind shares.
//!
//! - [`wire`]: objects of lists and watches;
//! - [`document`]: documents of files, strictly, with the lines of fields;
//! - [`meta`]: metadata, ports and names, with the checks of the API server.

pub(in crate::cluster) mod document;
pub(crate) mod meta;
pub(in crate::cluster) mod wire;

pub(in crate::cluster) use document::ObjectReader;

use super::yaml::Path;

/// A value that the API server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub(in crate::cluster) struct Violation {
    pub field: Path,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The object, or all its violations.
pub(in crate::cluster) type Checked<T> = Result<T, Vec<Violation>>;

/// The violations found so far in one object.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Violations(Vec<Violation>);

impl Violations {
    /// A report stays readable, however broken the object is.
    const MOST: usize = 20;

    pub fn add(&mut self, field: &Path, message: impl Into<String>) {
        if self.0.len() < Self::MOST {
            self.0.push(Violation { field: field.clone(), message: message.into() });
        }
    }

    pub fn check<T>(self, value: T) -> Checked<T> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }

    pub fn into_error<T>(self) -> Checked<T> {
        Err(self.0)
    }
}

/// Untrusted text for a message: quoted, control characters escaped, shortened.
pub(in crate::cluster) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{dots}")
}
