//! The verdict of the policies on a connection, and the evidence for it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::closed_set::closed_set;
use super::{Str, Text};

/// The verdict of NetworkPolicy v1 on the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    pub result: VerdictResult,
    #[schemars(with = "Basis")]
    pub basis: Text,
    pub egress: Side,
    pub ingress: Side,
    /// Limits of this verdict, such as other policy APIs in the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

closed_set! {
    /// The result of an evaluation.
    pub enum VerdictResult {
        Allowed = "allowed",
        Denied = "denied",
        /// The result cannot be known; `basis`, and `why` of the side, name what is missing.
        Undetermined = "undetermined",
    }
}

closed_set! {
    /// What a verdict rests on, or why it is undetermined.
    pub enum Basis {
        /// The rules of NetworkPolicy v1 determine the result.
        NetworkPolicyV1 = "networkpolicy_v1",
        /// The policies allow the connection, but changed within 10 seconds of the drop: the enforcer may go by the version before, or after.
        PolicyChanging = "policy_changing",
        /// A source of the index was not in sync, so what changed lately is not known.
        Stale = "stale",
        /// Nothing shows who opened the connection, and the policies deny it in one direction only.
        OpenerUnknown = "opener_unknown",
        /// An address passed from one pod to another at about that time.
        IpReused = "ip_reused",
        /// The owner of an address, or the destination port, is not known, and a rule depends on it.
        AddressesOnly = "addresses_only",
        /// A rule selects namespaces by labels, and the Namespace object is not known.
        UndefinedNamespaceLabels = "undefined_namespace_labels",
        /// Whether policies apply to a hostNetwork pod depends on the CNI.
        UndefinedHostNetwork = "undefined_host_network",
        /// Whether an `ipBlock` matches a pod's address depends on the CNI.
        UndefinedIpBlock = "undefined_ipblock",
        /// Whether a pod and its own node may always talk depends on the CNI.
        UndefinedOwnNode = "undefined_own_node",
        /// NetworkPolicy cannot name ICMP; what isolation does to it depends on the CNI.
        UndefinedIcmp = "undefined_icmp",
        /// NetworkPolicy names TCP, UDP and SCTP only; what isolation does to other protocols depends on the CNI.
        UndefinedProtocol = "undefined_protocol",
        /// The destination is a service's address, and which backend it stands for is not known.
        UndefinedServiceAddress = "undefined_service_address",
    }
}

/// One direction of a verdict: egress of the source, or ingress of the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Side {
    pub result: VerdictResult,
    /// Every policy that isolates the pod in this direction; empty means not isolated.
    pub isolated_by: Vec<PolicyRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_by: Option<RuleRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
    /// Why this side is `undetermined`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// With basis `policy_changing`: policies that isolate the pod in this direction, or did, and changed within 10 seconds
    /// of the drop. The enforcer may go by the version before, or after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<ChangedPolicy>,
}

/// A policy that changed shortly before or after a drop; for a deleted policy its last version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedPolicy {
    pub namespace: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    pub change: ChangeKind,
    /// From when the agent learned of the change to the drop; negative: it learned of it after the drop.
    pub changed_ago_seconds: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRef {
    #[schemars(with = "String")]
    pub namespace: Str,
    #[schemars(with = "String")]
    pub name: Str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub uid: Option<Str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Seconds from the last change of the policy that the agent saw to the drop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_ago_seconds: Option<u64>,
}

/// A rule: policy `namespace/name`, rule `ingress[0]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleRef {
    pub policy: String,
    pub rule: String,
}

/// The rule that came closest to a match, and what it missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Nearest {
    pub policy: String,
    /// `ingress[0]`; absent when the policy has no rule in this direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    pub misses: Vec<Miss>,
}

/// One requirement of a rule that the connection does not meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Miss {
    /// `ingress[0].from[1].podSelector`
    pub field: String,
    /// `app=api`
    pub want: String,
    /// `app=frontend`
    pub have: String,
}

/// The usual mistake behind the drop and the smallest change that would allow the flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hint {
    /// The kind of mistake, for grouping, such as `types-missing`.
    pub code: Text,
    /// The mistake and the change, for people.
    pub message: String,
}

closed_set! {
    /// What changed.
    pub enum ChangeKind {
        Created = "created",
        Edited = "edited",
        Deleted = "deleted",
        /// A namespace's labels, by which policies select.
        NamespaceLabels = "namespace_labels",
    }
}

impl ChangeKind {
    /// Returns the change of a policy that existed before, after, or both.
    pub fn of(before: bool, after: bool) -> ChangeKind {
        match (before, after) {
            (false, _) => ChangeKind::Created,
            (true, true) => ChangeKind::Edited,
            (true, false) => ChangeKind::Deleted,
        }
    }
}

impl fmt::Display for Miss {
    /// Writes the miss for people: `ingress[0].from[1].podSelector app=api | pod has app=frontend`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.have.starts_with("namespace ") {
            ""
        } else if self.field.ends_with(".podSelector") {
            "pod has "
        } else if self.field.ends_with(".namespaceSelector") {
            "namespace has "
        } else if self.field.contains("].ports[") {
            "packet "
        } else {
            ""
        };
        write!(f, "{} {} | {whose}{}", self.field, self.want, self.have)
    }
}
