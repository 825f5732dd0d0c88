//! The state of the parts of a running agent: hooks, sources, sinks, config file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Text;
use super::closed_set::closed_set;

/// The config file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigState {
    pub path: String,
    /// Seconds since the settings in effect were read.
    pub age_seconds: u64,
    /// The error in the present file; the agent keeps the configuration it had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Options that changed in the file and take effect at the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
}

closed_set! {
    /// Where in its life the agent is.
    pub enum RunPhase {
        /// The first status of a run.
        Started = "started",
        /// A status once a minute, and when a source or the config file changes.
        Running = "running",
        /// The last status of a run: nothing is held any more.
        Stopped = "stopped",
    }
}

closed_set! {
    /// How a hook is attached, or what of the rulesets can be read.
    pub enum HookMode {
        /// Not requested, or not supported by this kernel.
        Off = "off",
        /// Requested, and could not be attached; `detail` has the reason.
        Refused = "refused",
        /// `kfree_skb`: a tracepoint with the kernel's types.
        BtfTracepoint = "btf_tracepoint",
        /// `kfree_skb`: a raw tracepoint; `detail` says why not the other.
        RawTracepoint = "raw_tracepoint",
        /// `reject`: at the functions that send ICMP errors and resets.
        Fentry = "fentry",
        /// `reject`: at the tracepoint of IPv4's ICMP errors only.
        Tracepoint = "tracepoint",
        /// `tc`: TCX, from Linux 6.6.
        Tcx = "tcx",
        /// `tc`: filters below a clsact qdisc.
        Clsact = "clsact",
        /// `rulesets`: every part can be read.
        Read = "read",
        /// `rulesets`: `detail` names the parts that cannot be read.
        PartlyRead = "partly_read",
    }
}

/// A hook of the agent, or its view of the rulesets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HookState {
    /// `kfree_skb`, `reject`, `tc` or `rulesets`.
    pub name: Text,
    #[schemars(with = "HookMode")]
    pub state: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl HookState {
    pub fn new(name: &'static str, mode: HookMode, detail: Option<String>) -> HookState {
        HookState { name: name.into(), state: mode.into(), detail }
    }

    /// Returns true if the hook is attached.
    pub fn is_active(&self) -> bool {
        self.state != HookMode::Off.as_str() && self.state != HookMode::Refused.as_str()
    }
}

/// Changes that the index keeps, to evaluate drops as of their time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryState {
    /// Former owners of addresses, and former versions of policies and labels.
    pub kept: u64,
    /// Entries that were removed before their ten minutes, because there were too many.
    pub crowded_out: u64,
}

/// A source of cluster objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceState {
    pub name: String,
    /// The state in effect is the source's current state.
    pub synced: bool,
    /// Seconds since the state in effect was read.
    pub age_seconds: u64,
    /// Objects in effect, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Objects of kinds that are not used, by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, u64>,
    /// The first problem of the source, with its location; absent when synced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How the source is read, where there is more than one way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Records that the queue in front of one sink holds at most.
pub const SINK_QUEUE_RECORDS: usize = 16_384;

/// A sink and its counts, in packets: `written + held + lost` is what it received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SinkState {
    /// `stdout`, a file's path, or an address.
    pub name: String,
    /// `native`, `ecs`, `ocsf` or `otel`.
    pub format: Text,
    /// Packets in records that the sink wrote.
    pub written: u64,
    /// Packets that wait for the sink.
    pub held: u64,
    /// Packets in records that the sink lost.
    pub lost: u64,
    /// Records of every kind that the sink wrote, including its own loss records.
    pub records: u64,
    /// Records of every kind that the sink lost.
    pub records_lost: u64,
    /// Records in the sink's queue.
    pub queued: u64,
    /// Why the last write failed, or why the sink cannot be opened; absent after a successful write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
