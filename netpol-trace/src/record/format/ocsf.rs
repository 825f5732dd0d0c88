//! Open Cybersecurity Schema Framework 1.8: Network Activity (4001) with profile security_control; records of the agent itself
//! are Base Events. The whole native record is in `unmapped`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::model::packet::transport_number;
use crate::model::{Action, Cause, EndpointKind, Family};
use crate::record::format::message::message;
use crate::record::format::view::{FlowView, view};
use crate::record::json::{compact, embedded};
use crate::record::{Body, Endpoint, Record};

pub const VERSION: &str = "1.8.0";

const NETWORK_ACTIVITY: u64 = 4001;
const FAIL: u64 = 4;
const TRAFFIC: u64 = 6;
const OTHER: u64 = 99;

pub fn event(record: &Record) -> Value {
    let time = record.time.as_millisecond();
    let (class, activity, severity) = match &record.body {
        Body::Drop(drop) => {
            let graver = matches!(drop.cause, Cause::Disagrees | Cause::EnforcerUnavailable);
            (NETWORK_ACTIVITY, TRAFFIC, if graver { (3, "Medium") } else { (2, "Low") })
        }
        Body::Unanswered(_) => (NETWORK_ACTIVITY, FAIL, (2, "Low")),
        Body::Loss(_) => (0, OTHER, (3, "Medium")),
        Body::PolicyChange(_) | Body::Status(_) => (0, OTHER, (1, "Informational")),
    };
    let mut event = json!({
        "class_uid": class, "class_name": if class == 0 { "Base Event" } else { "Network Activity" },
        "category_uid": class / 1000, "category_name": if class == 0 { "Uncategorized" } else { "Network Activity" },
        "activity_id": activity, "activity_name": activity_name(&record.body), "type_uid": class * 100 + activity,
        "severity_id": severity.0, "severity": severity.1, "time": time, "message": message(record),
        "metadata": {
            "version": VERSION, "uid": record.id, "sequence": record.seq, "correlation_uid": record.fingerprint,
            "log_name": "netpol-trace", "log_version": record.schema, "original_time": record.time.to_string(),
            "product": {"name": "netpol-trace", "vendor_name": "netpol-trace", "version": env!("CARGO_PKG_VERSION")},
        },
    });
    if let Some(view) = view(&record.body) {
        network(&mut event, &view, time);
    }
    if let Body::Drop(drop) = &record.body {
        event["metadata"]["profiles"] = json!(["security_control"]);
        event["count"] = json!(drop.count);
        event["status_id"] = json!(2);
        event["status"] = json!("Failure");
        // 5 Refuse would be a closed port, 6 Dropped a detected threat: it was blocked.
        event["action_id"] = json!(2);
        event["action"] = json!("Denied");
        let rejected = drop.action == Action::Reject;
        event["disposition_id"] = json!(if rejected { 25 } else { 2 });
        event["disposition"] = json!(if rejected { "Rejected" } else { "Blocked" });
        event["status_detail"] = json!(drop.cause.as_str());
    }
    if let Body::Unanswered(unanswered) = &record.body {
        event["count"] = json!(unanswered.count);
        event["status_id"] = json!(2);
        event["status"] = json!("Failure");
        event["status_detail"] = json!(unanswered.basis);
    }
    let mut event = compact(event);
    event["unmapped"] = embedded(record);
    event
}

fn activity_name(body: &Body) -> &'static str {
    match body {
        Body::Drop(_) => "Traffic",
        Body::Unanswered(_) => "Fail",
        Body::PolicyChange(_) => "Policy Change",
        Body::Loss(_) => "Records Lost",
        Body::Status(_) => "Agent Status",
    }
}

fn network(event: &mut Value, view: &FlowView<'_>, time: i64) {
    event["src_endpoint"] = end(view.source);
    event["dst_endpoint"] = end(view.destination);
    event["start_time"] = json!(time);
    event["end_time"] = json!(view.last_time.map_or(time, Timestamp::as_millisecond));
    let (id, direction) = direction(view);
    let version = match view.network.family {
        Family::Ipv4 => (4, "Internet Protocol version 4 (IPv4)"),
        Family::Ipv6 => (6, "Internet Protocol version 6 (IPv6)"),
    };
    event["connection_info"] = json!({
        "protocol_num": transport_number(&view.network.transport), "protocol_name": view.network.transport,
        "protocol_ver_id": version.0, "protocol_ver": version.1, "direction_id": id, "direction": direction,
        "community_uid": view.network.community_id, "tcp_flags": flags(view),
    });
    event["traffic"] = json!({"packets": view.packets, "bytes": view.bytes});
    if let Some(policy) = view.policy() {
        event["policy"] = json!({
            "desc": view.hint.map(|hint| &hint.message), "name": format!("{}/{}", policy.namespace, policy.name), "uid": policy.uid, "is_applied": true,
            "version": policy.generation.map(|generation| generation.to_string()), "type": "NetworkPolicy",
        });
        if let Some(rule) = view.rule() {
            event["firewall_rule"] = json!({"name": rule, "desc": view.hint.map(|hint| &hint.message)});
        }
    }
}

/// Traffic between pods is lateral. At the cluster's edge it is inbound or outbound.
fn direction(view: &FlowView<'_>) -> (u64, &'static str) {
    let outside = |end: &Endpoint| end.kind == EndpointKind::External;
    match (outside(view.source), outside(view.destination)) {
        (true, false) => (1, "Inbound"),
        (false, true) => (2, "Outbound"),
        (false, false) => (3, "Lateral"),
        (true, true) => (0, "Unknown"),
    }
}

/// Returns the flags byte of the TCP header.
fn flags(view: &FlowView<'_>) -> Option<u64> {
    let bit = |flag: &str| match flag {
        "fin" => 1,
        "syn" => 2,
        "rst" => 4,
        "psh" => 8,
        "ack" => 16,
        "urg" => 32,
        _ => 0,
    };
    let flags = &view.network.tcp_flags;
    (!flags.is_empty()).then(|| flags.iter().fold(0, |sum, flag| sum | bit(flag)))
}

fn end(end: &Endpoint) -> Value {
    let pod = end.pod.as_ref();
    let name =
        pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)).or_else(|| end.node.as_deref().map(str::to_owned));
    let kind = match end.kind {
        EndpointKind::Pod => "Pod",
        EndpointKind::Node => "Node",
        EndpointKind::Service => "Service",
        EndpointKind::External => "External",
        EndpointKind::Unknown => "Unknown",
    };
    json!({
        "ip": end.ip, "port": end.port, "name": name, "uid": pod.and_then(|pod| pod.uid.as_ref()),
        "type": kind, "type_id": if end.kind == EndpointKind::Unknown { 0 } else { 99 },
        "svc_name": end.service.as_ref().map(|service| format!("{}/{}", service.namespace, service.name)),
        "domain": end.names.first(), "intermediate_ips": end.original.as_ref().map(|original| [original.ip]),
    })
}
