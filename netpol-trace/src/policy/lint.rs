//! The usual mistakes of NetworkPolicy, found in a cluster's objects: each with its place and what to do.
//!
//! ```text
//! Loaded ─> Context (index, who matches what) ─> one file of checks per subject ─> findings ─> text | json | sarif
//! ```
//!
//! A check speaks only where the input shows the mistake: a peer in a namespace that the input doesn't have is nobody's
//! mistake. What is legitimate now and then is `info`.

mod blocks;
pub mod catalogue;
mod context;
mod dns;
mod input;
mod isolation;
mod peers;
mod ports;
mod report;
mod sarif;
mod selectors;

use context::Context;
pub use report::{json, text};
pub use sarif::sarif;
use serde::Serialize;

pub use crate::cluster::location::{Location, Severity};
use crate::cluster::manifests::Loaded;

/// One mistake at one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// An entry of the [`catalogue`].
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

/// All findings, by file and line. `disabled` names catalogue entries to leave out.
pub fn lint(loaded: &Loaded, disabled: &[String]) -> Vec<Finding> {
    let context = Context::new(loaded);
    let mut findings = Vec::new();
    input::check(loaded, &mut findings);
    for policy in &context.policies {
        selectors::check(&context, policy, &mut findings);
        isolation::check(&context, policy, &mut findings);
        peers::check(&context, policy, &mut findings);
        ports::check(&context, policy, &mut findings);
        blocks::check(&context, policy, &mut findings);
        dns::check(&context, policy, &mut findings);
    }
    isolation::check_cluster(&context, &mut findings);
    findings.retain(|finding| !disabled.iter().any(|id| id == finding.id));
    findings.sort_by(|a, b| (&a.place, b.severity, a.id).cmp(&(&b.place, a.severity, b.id)));
    findings
}

#[cfg(test)]
mod tests;
