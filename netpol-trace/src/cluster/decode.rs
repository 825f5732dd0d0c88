//! Kubernetes objects to [`model`](super::model). Two layers:
//!
//! - functions from the API's types, shared by every source: [`policy`], [`pod`], [`service`] …; each checks what the
//!   API server would check of the fields that matter here;
//! - [`document`]: a tree with lines to the API's types, strictly, for files.

pub mod document;
pub(crate) mod meta;
mod pod;
mod policy;
mod service;

pub use document::{Decoded, Output, document};
pub use meta::{Meta, namespace, node};
pub use pod::{Workload, pod, template};
pub use policy::policy;
pub use service::{endpoint_slice, service};

use super::yaml::Path;

/// Policies of other APIs, which are not evaluated: group, kind, and the name in URLs.
pub const OTHER_POLICIES: [(&str, &str, &str); 9] = [
    ("policy.networking.k8s.io", "AdminNetworkPolicy", "adminnetworkpolicies"),
    ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies"),
    ("policy.networking.k8s.io", "ClusterNetworkPolicy", "clusternetworkpolicies"),
    ("projectcalico.org", "NetworkPolicy", "networkpolicies"),
    ("projectcalico.org", "GlobalNetworkPolicy", "globalnetworkpolicies"),
    ("crd.projectcalico.org", "NetworkPolicy", "networkpolicies"),
    ("crd.projectcalico.org", "GlobalNetworkPolicy", "globalnetworkpolicies"),
    ("cilium.io", "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
    ("cilium.io", "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies"),
];

/// A value that the API server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Violation {
    pub field: Path,
    /// What is wrong and what would be right.
    pub message: String,
}

/// All violations of one object, or the object.
pub type Checked<T> = Result<T, Vec<Violation>>;

/// Collects violations on the way.
#[derive(Debug, Default)]
struct Violations(Vec<Violation>);

impl Violations {
    /// An absurd object doesn't get an absurd report.
    const MOST: usize = 20;

    fn add(&mut self, field: &Path, message: impl Into<String>) {
        if self.0.len() < Self::MOST {
            self.0.push(Violation { field: field.clone(), message: message.into() });
        }
    }

    fn check<T>(self, value: T) -> Checked<T> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

/// Text of a stranger for a message: quoted, control characters escaped, shortened.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{dots}")
}
