//! The usual mistakes of NetworkPolicy, found in a cluster's objects: each with its place and what to do.
//!
//! ```text
//! Loaded ─> LintContext (index, policies with their lines) ─> catalogue: one file for each lint ─> findings ─> text | json | sarif
//! ```
//!
//! A check reports only what the input shows: a peer in a namespace that the input does not have is no mistake. What is
//! legitimate now and then has severity `info`.

pub mod catalogue;
mod context;
mod ports;
mod report;
mod sarif;
mod text;
mod yaml;

use context::LintContext;
pub use report::{json, text};
pub use sarif::sarif;
use serde::Serialize;

pub use crate::cluster::location::{Location, Severity};
use crate::cluster::manifests::Loaded;

/// One mistake at one place in the input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LintFinding {
    /// Of a lint of the [`catalogue`].
    pub id: &'static str,
    #[serde(serialize_with = "severity_name")]
    pub severity: Severity,
    #[serde(flatten, serialize_with = "place_fields")]
    pub place: Location,
    /// `NetworkPolicy staging/db-np`.
    pub object: String,
    /// What is wrong, with the values that are in the file.
    pub message: String,
    /// What to do, with the values to write; may have several lines.
    pub fix: String,
}

fn severity_name<S: serde::Serializer>(severity: &Severity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(severity.as_str())
}

fn place_fields<S: serde::Serializer>(place: &Location, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields<'a> {
        file: std::borrow::Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        document: Option<u32>,
        #[serde(skip_serializing_if = "str::is_empty")]
        field: &'a str,
    }
    let file = place.file.to_string_lossy();
    Fields { file, line: place.line, document: place.document, field: &place.field }.serialize(serializer)
}

/// All findings, by file and line. `disabled` lists ids of lints to leave out.
pub fn lint(loaded: &Loaded, disabled: &[String]) -> Vec<LintFinding> {
    let context = LintContext::new(loaded);
    let mut findings = Vec::new();
    for lint in catalogue::LINTS.iter().filter(|lint| !disabled.iter().any(|id| id == lint.id)) {
        (lint.check)(&context, &mut findings);
    }
    findings.sort_by(|a, b| (&a.place, b.severity, a.id).cmp(&(&b.place, a.severity, b.id)));
    findings
}

#[cfg(test)]
mod tests;
