//! Packet accounting: the totals of the kernel programs, the agent and the tc hook.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `matched = emitted + aggregated + lost` and `read = written + held + lost`, in packets.
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
    pub aggregated: u64,
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

/// The tc hook's own accounting, in connections: `opened = reported + lost`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionTotals {
    pub opened: u64,
    pub reported: u64,
    pub lost: u64,
    /// Connections in `unanswered` records, and those without one: too many, left out by the config file, or drops may have
    /// been missed.
    pub unanswered: u64,
    pub unanswered_unreported: u64,
    /// Packets whose headers could not be read.
    pub unread: u64,
}
