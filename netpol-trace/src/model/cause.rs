//! Why a packet was dropped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why the packet was dropped: the kernel's word joined with the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Policy,
    Disagrees,
    EnforcerUnavailable,
    ServiceWithoutEndpoints,
    Unknown,
    HostFirewall,
    PodLocal,
    ConntrackInvalid,
    NotPolicy,
}

/// What the enforcer did with the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Drop,
    Reject,
    Unknown,
}

/// How complete the naming of both ends is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enrichment {
    /// Looked up in a synced index.
    Complete,
    /// An address inside the pod network had no owner within the waiting time.
    Timeout,
    /// The index is older than its source.
    Stale,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Policy => "policy",
            Cause::Disagrees => "disagrees",
            Cause::EnforcerUnavailable => "enforcer_unavailable",
            Cause::ServiceWithoutEndpoints => "service_without_endpoints",
            Cause::Unknown => "unknown",
            Cause::HostFirewall => "host_firewall",
            Cause::PodLocal => "pod_local",
            Cause::ConntrackInvalid => "conntrack_invalid",
            Cause::NotPolicy => "not_policy",
        }
    }
}

impl Cause {
    /// Written without `--all-drops`.
    pub fn is_default(self) -> bool {
        matches!(
            self,
            Cause::Policy
                | Cause::Disagrees
                | Cause::EnforcerUnavailable
                | Cause::ServiceWithoutEndpoints
                | Cause::Unknown
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Direction, Family};

    #[test]
    fn as_serialized() {
        let written = |value: &dyn erased::Json| value.json();
        for cause in [Cause::Policy, Cause::EnforcerUnavailable, Cause::ServiceWithoutEndpoints, Cause::NotPolicy] {
            assert_eq!(written(&cause), format!("\"{}\"", cause.as_str()));
        }
        assert_eq!(written(&Direction::Ingress), "\"ingress\"");
        assert_eq!(written(&Family::Ipv6), "\"ipv6\"");
    }

    mod erased {
        pub trait Json {
            fn json(&self) -> String;
        }
        impl<T: serde::Serialize> Json for T {
            fn json(&self) -> String {
                serde_json::to_string(self).unwrap()
            }
        }
    }
}
