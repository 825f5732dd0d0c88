//! `netpol-trace doctor`: what this kernel and node can and cannot show, and what to grant.
//!
//! [`facts::gather`] reads the node's state and changes nothing; [`diagnose`] is pure and turns it into findings.

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

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingStatus {
    /// As needed, or without effect.
    Ok,
    /// Records lack something, drops cost more than needed, or the state is not known.
    Warn,
    /// Drops can't be recorded.
    Fail,
}

/// Name of the check that loads the programs.
const HOOK: &str = "hook";

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoctorFinding {
    /// A stable name, such as `btf`; several findings can share one.
    pub check: &'static str,
    pub status: FindingStatus,
    /// The state of this machine.
    pub found: String,
    /// What the state means for netpol-trace.
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

/// Whether drops can be recorded: no check failed.
pub fn can_record(findings: &[DoctorFinding]) -> bool {
    findings.iter().all(|finding| finding.status != FindingStatus::Fail)
}
