//! Every metric: name, type, help, labels. docs/metrics.md says more of each, and a test holds the two together.

use super::text::{Kind, Metric};

macro_rules! catalogue {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $id: Metric = Metric {
            name: concat!("netpol_trace_", $name), kind: Kind::$kind, help: $help, labels: &[$($label),*],
        };)*
        /// In the order of the page.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

catalogue! {
    BUILD_INFO: Gauge "build_info" ["version"] "Always 1; which program this is.";
    START: Gauge "start_time_seconds" [] "When this run of the agent began, in seconds since 1970.";
    DENIED: Counter "denied_packets_total" ["direction", "cause", "namespace"]
        "Packets in drop records, by the side whose policy denied, cause, and that side's namespace.";
    PACKETS: Counter "packets_total" ["cause"] "Dropped packets that the agent has dealt with, those left off the output included.";
    UNANSWERED: Counter "unanswered_connections_total" [] "Connections that got no answer while no drop was seen.";
    POLICY_CHANGES: Counter "policy_changes_total" [] "NetworkPolicies that were made, edited or removed.";
    LOST: Counter "lost_records_total" ["stage", "reason"] "Packets and records that did not make it, by where and why.";
    ERRORS: Counter "errors_total" ["stage", "kind"] "Errors that cost something, by where and which.";
    SEEN: Counter "kernel_seen_packets_total" [] "Freed packets that the hook looked at.";
    MATCHED: Counter "kernel_matched_packets_total" [] "Freed packets that may be drops by policy: emitted, aggregated or lost.";
    EMITTED: Counter "kernel_emitted_packets_total" [] "Matched packets that were handed to the agent.";
    FOLDED: Counter "kernel_aggregated_packets_total" [] "Matched packets that were counted into another one's record.";
    KERNEL_LOST: Counter "kernel_lost_packets_total" [] "Matched packets for which the ring had no room.";
    RECURSION: Counter "kernel_recursion_misses_total" [] "Runs of the program that BPF's recursion protection skipped; an estimate of packets.";
    NOT_RECORDED: Counter "not_recorded_packets_total" ["reason"] "Drops for reasons that no policy has, counted in the kernel only.";
    READ: Counter "agent_read_packets_total" [] "Packets that the agent took: written, held or lost.";
    WRITTEN: Counter "agent_written_packets_total" [] "Packets dealt with: on the first sink, or left off it because of their cause.";
    FILTERED: Counter "agent_filtered_packets_total" [] "The written packets that were left off the output.";
    HELD: Gauge "agent_held_packets" [] "Packets that wait in the agent: for the pipeline, for a name, or for the first sink.";
    AGENT_LOST: Counter "agent_lost_packets_total" [] "Packets that the agent or its first sink lost.";
    QUEUE: Gauge "agent_queue_packets" [] "Packets that wait between the reader and the pipeline.";
    QUEUE_SIZE: Gauge "agent_queue_size_packets" [] "Packets for which that queue has room.";
    RING_PEAK: Gauge "ring_peak_bytes" [] "Most octets found in the kernel's ring at one reading, in the last one to two minutes.";
    RING_SIZE: Gauge "ring_size_bytes" [] "Size of the kernel's ring.";
    SINK_WRITTEN: Counter "sink_written_packets_total" ["sink"] "Packets whose records a sink got out.";
    SINK_LOST: Counter "sink_lost_packets_total" ["sink"] "Packets whose records a sink lost.";
    SINK_RECORDS: Counter "sink_written_records_total" ["sink"] "Records of every kind that a sink got out.";
    SINK_QUEUE: Gauge "sink_queue_records" ["sink"] "Records that wait for a sink.";
    SINK_QUEUE_SIZE: Gauge "sink_queue_size_records" ["sink"] "Records that may wait for a sink.";
    SINK_FAILING: Gauge "sink_failing" ["sink"] "1 while a sink's last write failed, or it can't be opened.";
    OPENED: Counter "connections_opened_total" [] "Connections that the tc hook saw open: reported or lost.";
    REPORTED: Counter "connections_reported_total" [] "Connections reported to the agent.";
    CONNECTIONS_LOST: Counter "connections_lost_total" [] "Connections lost before they reached the agent.";
    HOOK: Gauge "hook_active" ["hook", "state"] "1 for a hook that is in use, 0 for one that is off or was refused; the state says how.";
    CONFIG_OK: Gauge "config_last_reload_successful" [] "1 while the config file, as it is now, is in force; 0 after one that was refused.";
    CONFIG_AGE: Gauge "config_age_seconds" [] "Since the config in force was read from its file.";
    CONFIG_PENDING: Gauge "config_pending_options" [] "Options that changed in the config file and count from the next start only.";
    SYNCED: Gauge "source_synced" ["source"] "1 while what a source says is in force.";
    AGE: Gauge "source_age_seconds" ["source"] "Since the state in force was read from its source.";
    OBJECTS: Gauge "source_objects" ["source", "kind"] "Objects in force.";
}
