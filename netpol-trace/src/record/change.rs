//! The record of a policy change.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{ChangeKind, Direction};

/// A NetworkPolicy was created, edited or deleted, or the labels of a namespace changed. `time` is when the agent learned of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyChange {
    pub change: ChangeKind,
    pub namespace: String,
    /// The policy's name; absent for a namespace's labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// `metadata.generation` before the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_before: Option<i64>,
    /// `metadata.generation` after the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// By their position in the policy before the change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules_removed: Vec<RuleText>,
    /// By their position in the policy after the change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules_added: Vec<RuleText>,
    /// Other changed fields that matter: `spec.podSelector`, `spec.policyTypes`, labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    /// Pods that no policy isolated before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newly_isolates: Vec<IsolationChange>,
    /// Pods that no policy isolates after the change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_longer_isolates: Vec<IsolationChange>,
    /// Lists were shortened to keep the line under 16 KiB.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A rule by its position, and a description of what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleText {
    /// `ingress[0]`
    pub rule: String,
    /// `from pods app=api: 5432/TCP`
    pub allows: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldChange {
    pub field: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// How many pods became isolated in one direction, or stopped being isolated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IsolationChange {
    pub direction: Direction,
    pub pods: u64,
    /// The first ten, as `Deployment/web`.
    pub workloads: Vec<String>,
}

impl PolicyChange {
    /// Returns a change without content.
    pub fn of(change: ChangeKind) -> PolicyChange {
        PolicyChange {
            change,
            namespace: String::new(),
            policy: None,
            uid: None,
            generation_before: None,
            generation: None,
            rules_removed: Vec::new(),
            rules_added: Vec::new(),
            fields: Vec::new(),
            newly_isolates: Vec::new(),
            no_longer_isolates: Vec::new(),
            truncated: false,
        }
    }
}
