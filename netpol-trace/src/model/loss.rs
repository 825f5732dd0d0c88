//! Packets and records that got lost: one table of the ways ([`LossKind::ALL`]), and the record that declares one.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Text;
use super::closed_set::closed_set;

/// Packets or records that got lost, declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    pub stage: LossStage,
    /// Why they got lost.
    #[schemars(with = "LossReason")]
    pub reason: Text,
    /// What `count` counts; absent means packets. A loss of anything else is not part of packet accounting.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<LossUnit>")]
    pub of: Option<Text>,
    /// Absent where nobody can know the number, such as for a time without hooks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The count is an estimate: see stage `kernel_recursion`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
    /// The time of the last one, or the end of the time without a hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_time: Option<Timestamp>,
    /// The name of the sink that lost them, with stage `sink`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<String>,
    /// The id of the first record that the sink lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_id: Option<String>,
    /// The id of the last record that the sink lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_id: Option<String>,
}

closed_set! {
    /// Where packets or records got lost.
    pub enum LossStage {
        /// A map of the kernel programs.
        KernelMap = "kernel_map",
        /// The ring buffer between the kernel programs and the agent.
        KernelRing = "kernel_ring",
        /// The kernel runs no BPF program inside itself on one CPU, so the program missed drops.
        KernelRecursion = "kernel_recursion",
        /// The agent, before the sinks.
        AgentQueue = "agent_queue",
        /// An output.
        Sink = "sink",
        /// No hook was attached: the time between two runs of the agent.
        NotAttached = "not_attached",
    }
}

closed_set! {
    /// Why packets or records got lost.
    pub enum LossReason {
        /// The ring buffer had no room.
        RingFull = "ring_full",
        /// The tc hook's ring buffer had no room.
        ConnectionsRingFull = "connections_ring_full",
        /// The tc hook's table of connections was full.
        ConnectionsFull = "connections_full",
        /// The kernel refused an entry in the tc hook's table of connections.
        ConnectionRefused = "connection_refused",
        /// The kernel skipped runs of the program.
        RecursionProtection = "recursion_protection",
        /// A queue had no room.
        QueueFull = "queue_full",
        /// The headers could not be decoded.
        UnreadablePacket = "unreadable_packet",
        /// The list of policy changes was full.
        PolicyChangesFull = "policy_changes_full",
        /// The agent before this one ended without its clean-up.
        Killed = "killed",
        /// The agent before this one ended by itself.
        Stopped = "stopped",
        /// This agent removed pins of another version, with the counts in them.
        PinsRemoved = "pins_removed",
        /// A write to the sink failed.
        WriteFailed = "write_failed",
        /// The receiver did not answer for 5 minutes.
        Unreachable = "unreachable",
        /// The receiver refused a request.
        Refused = "refused",
        /// The receiver took only a part of a request.
        Rejected = "rejected",
        /// The sink could not be opened yet.
        NotOpen = "not_open",
        /// The reader of the output has gone.
        Closed = "closed",
    }
}

closed_set! {
    /// What a loss counts.
    pub enum LossUnit {
        /// Packets, as the kernel has them (skbs).
        Packets = "packets",
        /// Connections that the tc hook saw.
        Connections = "connections",
        /// DNS answers, and refusals of connections, that the tc hook saw.
        Answers = "answers",
        /// Changes of policies.
        PolicyChanges = "policy_changes",
        /// Packets of the run before this one; the totals of this run do not have them.
        PacketsOfTheRunBefore = "packets_of_the_run_before",
    }
}

/// One way in which packets or records get lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossKind {
    pub stage: LossStage,
    pub reason: LossReason,
    pub unit: LossUnit,
    /// `netpol_trace_lost_records_total` has it; else only a record declares it.
    pub in_metrics: bool,
}

macro_rules! loss_kinds {
    ($($kind:ident: $stage:ident, $reason:ident, $unit:ident, in_metrics: $in_metrics:literal;)+) => {
        impl LossKind {
            $(pub const $kind: LossKind = LossKind {
                stage: LossStage::$stage, reason: LossReason::$reason, unit: LossUnit::$unit, in_metrics: $in_metrics,
            };)+
            pub const ALL: &'static [LossKind] = &[$(LossKind::$kind),+];
        }
    };
}

loss_kinds! {
    RING_FULL: KernelRing, RingFull, Packets, in_metrics: true;
    RECURSION: KernelRecursion, RecursionProtection, Packets, in_metrics: true;
    QUEUE_FULL: AgentQueue, QueueFull, Packets, in_metrics: true;
    UNREADABLE: AgentQueue, UnreadablePacket, Packets, in_metrics: true;
    CONNECTIONS_FULL: KernelMap, ConnectionsFull, Connections, in_metrics: true;
    CONNECTION_REFUSED: KernelMap, ConnectionRefused, Connections, in_metrics: true;
    CONNECTIONS_RING_FULL: KernelRing, ConnectionsRingFull, Connections, in_metrics: true;
    ANSWERS_RING_FULL: KernelRing, ConnectionsRingFull, Answers, in_metrics: true;
    CONNECTIONS_QUEUE_FULL: AgentQueue, QueueFull, Connections, in_metrics: true;
    POLICY_CHANGES_FULL: AgentQueue, PolicyChangesFull, PolicyChanges, in_metrics: false;
    KILLED: AgentQueue, Killed, PacketsOfTheRunBefore, in_metrics: false;
    PINS_REMOVED: KernelMap, PinsRemoved, PacketsOfTheRunBefore, in_metrics: false;
    STOPPED_WITHOUT_HOOKS: NotAttached, Stopped, Packets, in_metrics: false;
    KILLED_WITHOUT_HOOKS: NotAttached, Killed, Packets, in_metrics: false;
    SINK_QUEUE_FULL: Sink, QueueFull, Packets, in_metrics: true;
    SINK_WRITE_FAILED: Sink, WriteFailed, Packets, in_metrics: true;
    SINK_UNREACHABLE: Sink, Unreachable, Packets, in_metrics: true;
    SINK_REFUSED: Sink, Refused, Packets, in_metrics: true;
    SINK_REJECTED: Sink, Rejected, Packets, in_metrics: true;
    SINK_NOT_OPEN: Sink, NotOpen, Packets, in_metrics: true;
    SINK_CLOSED: Sink, Closed, Packets, in_metrics: true;
}

impl LossKind {
    /// Returns the record that declares `count` of this kind, up to `last_time`.
    pub fn declare(self, count: Option<u64>, last_time: Timestamp) -> Loss {
        Loss {
            stage: self.stage,
            reason: self.reason.into(),
            of: (self.unit != LossUnit::Packets).then(|| self.unit.into()),
            count,
            estimate: self.stage == LossStage::KernelRecursion,
            last_time: Some(last_time),
            sink: None,
            first_id: None,
            last_id: None,
        }
    }
}
