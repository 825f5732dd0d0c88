//! Every metric: name, type, help, labels. A test compares docs/metrics.md with it.

use super::text::{Metric, MetricKind};

macro_rules! catalogue {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $id: Metric = Metric {
            name: concat!("netpol_trace_", $name), kind: MetricKind::$kind, help: $help, labels: &[$($label),*],
        };)*
        /// In the order of the page.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

catalogue! {
    BUILD_INFO: Gauge "build_info" ["version"] "Always 1; the label has the program's version.";
    START: Gauge "start_time_seconds" [] "Start of this run, in seconds since 1970.";
    DENIED: Counter "denied_packets_total" ["direction", "cause", "namespace"]
        "Packets in drop records, by the side whose policy denied, cause, and that side's namespace.";
    PACKETS: Counter "packets_total" ["cause"] "Dropped packets that the agent has handled, including those without a record.";
    UNANSWERED: Counter "unanswered_connections_total" [] "Connections that got no reply although the agent saw no drop on this node.";
    POLICY_CHANGES: Counter "policy_changes_total" [] "NetworkPolicies created, edited or deleted.";
    LOST: Counter "lost_records_total" ["stage", "reason"] "Lost packets and records, by stage and reason.";
    ERRORS: Counter "errors_total" ["stage", "kind"] "Errors with an effect, by stage and kind.";
    SEEN: Counter "kernel_seen_packets_total" [] "Freed packets that the hook inspected.";
    MATCHED: Counter "kernel_matched_packets_total" [] "Freed packets that may be drops by policy: emitted, aggregated or lost.";
    EMITTED: Counter "kernel_emitted_packets_total" [] "Matched packets sent to the agent.";
    AGGREGATED: Counter "kernel_aggregated_packets_total" [] "Matched packets counted into the record of another packet.";
    KERNEL_LOST: Counter "kernel_lost_packets_total" [] "Matched packets for which the ring buffer had no room.";
    RECURSION: Counter "kernel_recursion_misses_total" [] "Program runs that BPF's recursion protection skipped: an estimate of packets.";
    NOT_RECORDED: Counter "not_recorded_packets_total" ["reason"] "Drops for reasons that no policy has, counted in the kernel only.";
    READ: Counter "agent_read_packets_total" [] "Packets that the agent read: written, held or lost.";
    WRITTEN: Counter "agent_written_packets_total" [] "Packets that the primary sink wrote, or that get no record because of their cause.";
    FILTERED: Counter "agent_filtered_packets_total" [] "The part of the written packets that gets no record.";
    HELD: Gauge "agent_held_packets" [] "Packets that wait in the agent: for the pipeline, for a name, or for the primary sink.";
    AGENT_LOST: Counter "agent_lost_packets_total" [] "Packets that the agent or its primary sink lost.";
    QUEUE: Gauge "agent_queue_packets" [] "Packets in the queue between the reader and the pipeline.";
    QUEUE_SIZE: Gauge "agent_queue_size_packets" [] "Room of that queue, in packets.";
    RING_PEAK: Gauge "ring_peak_bytes" [] "Peak fill of the kernel's ring buffer in the last one to two minutes.";
    RING_SIZE: Gauge "ring_size_bytes" [] "Size of the kernel's ring buffer.";
    SINK_WRITTEN: Counter "sink_written_packets_total" ["sink"] "Packets whose records a sink has written.";
    SINK_LOST: Counter "sink_lost_packets_total" ["sink"] "Packets whose records a sink has lost.";
    SINK_RECORDS: Counter "sink_written_records_total" ["sink"] "Records of every kind that a sink has written.";
    SINK_QUEUE: Gauge "sink_queue_records" ["sink"] "Records in a sink's queue.";
    SINK_QUEUE_SIZE: Gauge "sink_queue_size_records" ["sink"] "Room of a sink's queue, in records.";
    SINK_FAILING: Gauge "sink_failing" ["sink"] "1 if a sink's last write failed or the sink cannot be opened.";
    OPENED: Counter "connections_opened_total" [] "Connections that the tc hook saw open: reported or lost.";
    REPORTED: Counter "connections_reported_total" [] "Connections that the tc hook reported to the agent.";
    CONNECTIONS_LOST: Counter "connections_lost_total" [] "Connections that the tc hook could not report.";
    HOOK: Gauge "hook_active" ["hook", "state"] "1 if a hook is attached, 0 if it is off or refused; the state says how it is attached.";
    CONFIG_OK: Gauge "config_last_reload_successful" [] "1 if the present config file is in effect, 0 if it was refused.";
    CONFIG_AGE: Gauge "config_age_seconds" [] "Seconds since the settings in effect were read from the config file.";
    CONFIG_PENDING: Gauge "config_pending_options" [] "Options that changed in the config file and take effect at the next start.";
    SYNCED: Gauge "source_synced" ["source"] "1 if the state in effect is the source's current state.";
    AGE: Gauge "source_age_seconds" ["source"] "Seconds since the state in effect was read from its source.";
    OBJECTS: Gauge "source_objects" ["source", "kind"] "Objects in effect.";
}
