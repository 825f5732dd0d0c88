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

/// What became of the packets that the kernel freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelTotals {
    /// Freed packets that the hook inspected.
    pub seen: u64,
    /// Freed packets that may be drops by policy; with --all-drops, all drops.
    pub matched: u64,
    /// Matched packets sent to the agent, each in an event of its own.
    pub emitted: u64,
    /// Matched packets counted into the record of another packet.
    pub aggregated: u64,
    /// Matched packets for which the ring buffer had no room.
    pub lost: u64,
    /// Program runs that BPF's recursion protection skipped: an estimate of packets, not part of `matched`.
    pub recursion_misses: u64,
}

/// What became of the packets that the agent read. `written`, `held` and `lost` are those of the first sink; `sinks` has the others'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentTotals {
    /// Packets that the agent read from the ring buffer.
    pub read: u64,
    /// Dealt with in full: on the output or, `filtered` of them, left off it because of their cause.
    pub written: u64,
    /// The part of `written` that is counted in `causes` only: without --all-drops, or left out by the config file.
    pub filtered: u64,
    /// Waiting in the agent.
    pub held: u64,
    /// Lost by the agent or its primary sink.
    pub lost: u64,
}

/// The tc hook's own accounting, in connections: `opened = reported + lost`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionTotals {
    /// Connections that the tc hook saw open.
    pub opened: u64,
    /// Connections that the tc hook reported to the agent.
    pub reported: u64,
    /// Connections that the tc hook could not report.
    pub lost: u64,
    /// Connections in `unanswered` records.
    pub unanswered: u64,
    /// Unanswered connections without a record: too many at once, left out by the config file, or a drop may have been missed.
    pub unanswered_unreported: u64,
    /// Packets whose headers could not be read.
    pub unread: u64,
}
