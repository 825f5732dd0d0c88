//! The records in which the agent speaks of itself: what was lost, how things stand, and the books.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{Cause, Text};

/// Packets or records that did not make it, declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    pub stage: LossStage,
    pub reason: Text,
    /// What `count` counts, where not packets: `connections`, `answers` (of DNS, and refusals). Outside the books.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<Text>,
    /// Packets; absent where nobody can know (time without hooks).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The count is an estimate (the kernel's recursion guard).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossStage {
    KernelMap,
    KernelRing,
    KernelRecursion,
    AgentQueue,
    Sink,
    NotAttached,
}

/// The agent's own state and its books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub phase: Phase,
    pub version: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_run: Option<String>,
    pub totals: Totals,
    /// With the tc hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionTotals>,
    /// The written packets by cause, those left off the output included.
    pub causes: BTreeMap<Cause, u64>,
    /// Drops for other reasons than policy that the kernel counted and did not record (without --all-drops), by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_recorded: BTreeMap<String, u64>,
    pub hooks: Vec<HookState>,
    pub sources: Vec<SourceState>,
    #[serde(default)]
    pub history: HistoryState,
    /// Where records go. The first one is the ledger: `totals.agent` is about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sinks: Vec<SinkState>,
    /// With a config file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigState>,
}

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
pub enum Phase {
    Started,
    Running,
    Stopped,
}

/// `matched = emitted + folded + lost` and `read = written + held + lost`, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Absent when the kernel's counters could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelTotals>,
    pub agent: AgentTotals,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelTotals {
    pub seen: u64,
    pub matched: u64,
    pub emitted: u64,
    pub folded: u64,
    pub lost: u64,
    pub recursion_misses: u64,
}

/// What became of the packets that the agent read. `written`, `held` and `lost` are those of the first sink; `sinks` has the others'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentTotals {
    pub read: u64,
    /// Dealt with in full: on the output or, `filtered` of them, left off it because of their cause.
    pub written: u64,
    /// The part of `written` that is counted in `causes` only: without --all-drops, or left out by the config file.
    pub filtered: u64,
    /// Waiting in the agent.
    pub held: u64,
    pub lost: u64,
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
    /// A hook that was not asked for, or that this kernel does not have.
    pub const OFF: Text = Text::Borrowed("off");
    /// A hook that was asked for and could not be attached.
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

/// The tc hook's own books, in connections: `opened = told + lost`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionTotals {
    pub opened: u64,
    pub told: u64,
    pub lost: u64,
    /// Connections in `unanswered` records, and those without one: too many, left out by the config file, or drops may have
    /// been missed.
    pub unanswered: u64,
    pub unanswered_untold: u64,
    /// Packets whose headers could not be read.
    pub unread: u64,
}
