//! What the policies say of a connection, and the evidence for it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Str, Text};

/// What NetworkPolicy v1 says of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    pub result: VerdictResult,
    /// `networkpolicy_v1`, `policy_changing`, `addresses_only`, `stale`, `ip_reused`, `undefined_…`.
    pub basis: Text,
    pub egress: Side,
    pub ingress: Side,
    /// What the reader should know of how far this verdict reaches, such as other policy APIs in the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerdictResult {
    Allowed,
    Denied,
    Undetermined,
}

impl VerdictResult {
    pub fn as_str(self) -> &'static str {
        match self {
            VerdictResult::Allowed => "allowed",
            VerdictResult::Denied => "denied",
            VerdictResult::Undetermined => "undetermined",
        }
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

/// A policy that changed shortly before or after a drop. Of a deleted one, its last version.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_ago_seconds: Option<u64>,
}

/// A rule by its place: policy `namespace/name`, rule `ingress[0]`.
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
    pub code: Text,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    Created,
    Edited,
    Deleted,
    NamespaceLabels,
}

impl ChangeKind {
    /// What became of a policy that was there before, or is after.
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
