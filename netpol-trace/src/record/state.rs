//! The status record: the agent's state and its packet accounting.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{
    Cause, ConfigState, ConnectionTotals, HistoryState, HookState, RunPhase, SinkState, SourceState, Text, Totals,
};

/// The agent's state and packet accounting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub phase: RunPhase,
    pub version: Text,
    /// The id of the run before this one on the node, from `--state-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_run: Option<String>,
    pub totals: Totals,
    /// With the tc hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionTotals>,
    /// The written packets by cause, including those that get no record because of their cause.
    pub causes: BTreeMap<Cause, u64>,
    /// Drops for other reasons than policy that the kernel counted and did not record (without --all-drops), by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_recorded: BTreeMap<String, u64>,
    pub hooks: Vec<HookState>,
    pub sources: Vec<SourceState>,
    #[serde(default)]
    pub history: HistoryState,
    /// The first is the primary sink, which `totals.agent` is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sinks: Vec<SinkState>,
    /// With a config file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigState>,
}
