//! Every lint, one file each: what the mistake is, the check that finds it, and its cases.
//!
//! A new lint is a new file here, its `mod` line and its line in [`LINTS`]. Hints of recorded drops use the same ids.

mod and_or;
mod apiserver;
mod clusterip_ipblock;
mod dns_egress;
mod dns_nodelocal;
mod dns_pod_port;
mod duplicate_name;
mod dynamic_ports;
mod empty_peers;
mod family;
mod hostnet_peer;
mod icmp;
mod lockout;
mod missing_to;
mod named_port;
mod no_match;
mod no_namespace;
mod not_enforced;
mod ns_label;
mod open_pods;
mod pod_cidr_ipblock;
mod proto_default;
mod shape;
mod snat_source;
mod svc_port;
mod types_missing;
mod wide_namespace;
mod wrong_ns;

use crate::policy::lint::context::{LintContext, PolicyContext};
use crate::policy::lint::{LintFinding, Severity};

/// One kind of mistake and the check that finds it.
#[derive(Debug)]
pub struct Lint {
    /// Stable: scripts and `--disable` name it.
    pub id: &'static str,
    /// Severity of a finding, unless the check lowers it.
    pub severity: Severity,
    pub title: &'static str,
    /// What is wrong, in general.
    pub what: &'static str,
    /// What to do, in general.
    pub fix: &'static str,
    /// Appends a finding for each place with this mistake.
    pub(super) check: fn(&LintContext<'_>, &mut Vec<LintFinding>),
}

impl Lint {
    /// A finding at a field of a policy.
    fn finding(&self, at: &PolicyContext<'_>, field: &str, message: String, fix: String) -> LintFinding {
        let (place, object) = (at.located.at(field), at.name());
        LintFinding { id: self.id, severity: self.severity, place, object, message, fix }
    }
}

/// All lints, by subject; `lint --list` prints them in this order.
pub static LINTS: &[&Lint] = &[
    &dns_egress::LINT,
    &dns_nodelocal::LINT,
    &dns_pod_port::LINT,
    &and_or::LINT,
    &ns_label::LINT,
    &wrong_ns::LINT,
    &no_match::LINT,
    &svc_port::LINT,
    &clusterip_ipblock::LINT,
    &apiserver::LINT,
    &empty_peers::LINT,
    &lockout::LINT,
    &types_missing::LINT,
    &proto_default::LINT,
    &named_port::LINT,
    &hostnet_peer::LINT,
    &pod_cidr_ipblock::LINT,
    &family::LINT,
    &dynamic_ports::LINT,
    &snat_source::LINT,
    &duplicate_name::LINT,
    &missing_to::LINT,
    &no_namespace::LINT,
    &open_pods::LINT,
    &wide_namespace::LINT,
    &icmp::LINT,
    &shape::LINT,
    &not_enforced::LINT,
];

/// The lint with that id.
pub fn find(id: &str) -> Option<&'static Lint> {
    LINTS.iter().copied().find(|lint| lint.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_found() {
        for (i, lint) in LINTS.iter().enumerate() {
            assert_eq!(find(lint.id).map(|found| found.title), Some(lint.title));
            assert!(LINTS[i + 1..].iter().all(|other| other.id != lint.id), "{}", lint.id);
            for text in [lint.title, lint.what, lint.fix] {
                assert!(!text.is_empty() && text.is_ascii(), "{}: {text}", lint.id);
            }
        }
        assert!(find("nothing").is_none());
    }

    /// A file that is not in the list would be a lint that never runs.
    #[test]
    fn every_file_is_a_lint_in_the_list() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy/lint/catalogue");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").replace('_', "-"))
            .collect();
        files.sort_unstable();
        let mut ids: Vec<&str> = LINTS.iter().map(|lint| lint.id).collect();
        ids.sort_unstable();
        assert_eq!(files, ids);
    }
}
