//! How the parts of a running agent stand: hooks, sources, sinks, config file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Text;

/// The config file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigState {
    pub path: String,
    /// Since what is in force was read, in seconds.
    pub age_seconds: u64,
    /// What is wrong in the file as it is now; what it said before stays in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Options that changed in the file and count from the next start only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    Started,
    Running,
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HookState {
    pub name: Text,
    /// How the hook is attached; `off` when it was not asked for or this kernel does not have it, `refused` when it was asked for and
    /// could not be attached: `detail` says why.
    pub state: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl HookState {
    /// State of a hook that was not asked for, or that this kernel does not have.
    pub const OFF: Text = Text::Borrowed("off");
    /// State of a hook that was asked for and could not be attached.
    pub const REFUSED: Text = Text::Borrowed("refused");

    pub fn is_active(&self) -> bool {
        self.state != HookState::OFF && self.state != HookState::REFUSED
    }
}

/// What the agent remembers of the cluster's past, to judge a drop by what held at its time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryState {
    /// Former owners of addresses, and former versions of policies and labels.
    pub kept: u64,
    /// Forgotten before their ten minutes, because there were too many.
    pub crowded_out: u64,
}

/// A source of cluster objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceState {
    pub name: String,
    /// What is in force is what the source says now.
    pub synced: bool,
    /// Since the state in force was read, in seconds.
    pub age_seconds: u64,
    /// Objects in force, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Objects of kinds that are not used, by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How it is read, where that is not always the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Records that the queue in front of one sink holds at most.
pub const SINK_QUEUE_RECORDS: usize = 16_384;

/// A sink and its own books, in packets: `written + held + lost` is what it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SinkState {
    /// `stdout`, a file's path, or an address.
    pub name: String,
    /// `native`, `ecs`, `ocsf` or `otel`.
    pub format: Text,
    pub written: u64,
    pub held: u64,
    pub lost: u64,
    /// Records of every kind that got out, this sink's own loss records among them.
    pub records: u64,
    pub records_lost: u64,
    /// Records that wait.
    pub queued: u64,
    /// Why the last write failed, or why the sink can't be opened; absent after a write that succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
