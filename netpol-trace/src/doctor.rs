//! `netpol-trace doctor`: what this kernel and node can and cannot show, and what to grant.
//!
//! [`facts::gather`] looks, and changes nothing on the node; [`diagnose`] is pure and says what it means.

mod api;
mod diagnose;
mod enforcement;
pub mod facts;
#[cfg(test)]
mod tests;
mod text;

use serde::Serialize;

pub use api::api;
pub use diagnose::diagnose;
pub use facts::{NodeFacts, gather};
pub use text::text;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingStatus {
    /// As it should be, or without effect.
    Ok,
    /// Something is not shown, costs more than it should, or can't be told.
    Warn,
    /// Drops can't be recorded.
    Fail,
}

/// The check that tries the programs themselves.
const HOOK: &str = "hook";

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoctorFinding {
    /// A stable name, such as `btf`; several findings can share one.
    pub check: &'static str,
    pub status: FindingStatus,
    /// What is so on this machine.
    pub found: String,
    /// What follows for netpol-trace.
    pub meaning: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl DoctorFinding {
    fn new(
        check: &'static str,
        status: FindingStatus,
        found: impl Into<String>,
        meaning: impl Into<String>,
    ) -> DoctorFinding {
        DoctorFinding { check, status, found: found.into(), meaning: meaning.into(), remedy: None }
    }

    fn ok(check: &'static str, found: impl Into<String>, meaning: impl Into<String>) -> DoctorFinding {
        DoctorFinding::new(check, FindingStatus::Ok, found, meaning)
    }

    fn warn(
        check: &'static str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> DoctorFinding {
        DoctorFinding { remedy: Some(remedy.into()), ..DoctorFinding::new(check, FindingStatus::Warn, found, meaning) }
    }

    fn fail(
        check: &'static str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> DoctorFinding {
        DoctorFinding { remedy: Some(remedy.into()), ..DoctorFinding::new(check, FindingStatus::Fail, found, meaning) }
    }
}

/// Whether drops can be recorded: nothing failed.
pub fn can_record(findings: &[DoctorFinding]) -> bool {
    findings.iter().all(|finding| finding.status != FindingStatus::Fail)
}
