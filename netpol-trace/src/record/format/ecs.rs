//! Elastic Common Schema. ECS has room for one pod and one policy: the whole native record is in `netpol_trace`.

use serde_json::{Value, json};

use crate::model::{Action, Cause, ChangeKind, RunPhase};
use crate::record::format::message::message;
use crate::record::format::view::{FlowView, view};
use crate::record::json::{compact, embedded};
use crate::record::{Body, Endpoint, Record};

/// The version whose fields these are.
pub const VERSION: &str = "9.4.0";

pub fn event(record: &Record) -> Value {
    let (dataset, kind, category, types, action, outcome) = what(&record.body);
    let mut event = json!({
        "@timestamp": record.time.to_string(),
        "ecs": {"version": VERSION},
        "message": message(record),
        "event": {
            "kind": kind, "category": category, "type": types, "action": action, "outcome": outcome, "id": record.id,
            "hash": record.fingerprint, "sequence": record.seq, "module": "netpol_trace", "dataset": dataset, "provider": "kernel",
        },
        "agent": {"type": "netpol-trace", "version": env!("CARGO_PKG_VERSION"), "ephemeral_id": record.run},
        "observer": {"type": "network-policy", "product": "netpol-trace", "hostname": record.node},
        "host": {"name": record.node},
        "orchestrator": {"type": "kubernetes", "cluster": {"name": record.cluster}},
    });
    if let Some(view) = view(&record.body) {
        network(&mut event, &view, record);
    }
    if let Body::PolicyChange(change) = &record.body {
        event["orchestrator"]["namespace"] = json!(change.namespace);
        event["orchestrator"]["resource"] = match &change.policy {
            Some(policy) => json!({"type": "networkpolicy", "name": policy, "id": change.uid}),
            None => json!({"type": "namespace", "name": change.namespace}),
        };
    }
    let mut event = compact(event);
    event["netpol_trace"] = embedded(record);
    event
}

type EcsKind =
    (&'static str, &'static str, &'static [&'static str], &'static [&'static str], &'static str, Option<&'static str>);

/// Dataset, kind, category, type, action, outcome.
fn what(body: &Body) -> EcsKind {
    match body {
        Body::Drop(drop) => {
            let denied: &[&str] = match drop.cause {
                Cause::ConntrackInvalid | Cause::NotPolicy | Cause::ServiceWithoutEndpoints => &["connection", "info"],
                _ => &["connection", "denied"],
            };
            let action = if drop.action == Action::Reject { "rejected" } else { "dropped" };
            ("netpol_trace.drop", "event", &["network"], denied, action, Some("failure"))
        }
        Body::Unanswered(_) => {
            ("netpol_trace.unanswered", "event", &["network"], &["connection"], "unanswered", Some("failure"))
        }
        Body::PolicyChange(change) => {
            let (kind, action): (&[&str], _) = match change.change {
                ChangeKind::Created => (&["creation"], "policy-created"),
                ChangeKind::Edited => (&["change"], "policy-edited"),
                ChangeKind::Deleted => (&["deletion"], "policy-deleted"),
                ChangeKind::NamespaceLabels => (&["change"], "namespace-labels-edited"),
            };
            ("netpol_trace.policy_change", "event", &["configuration"], kind, action, None)
        }
        Body::Loss(_) => ("netpol_trace.loss", "event", &["host"], &["error"], "records-lost", None),
        Body::Status(status) => {
            let action = match status.phase {
                RunPhase::Started => "started",
                RunPhase::Running => "running",
                RunPhase::Stopped => "stopped",
            };
            ("netpol_trace.status", "state", &["host"], &["info"], action, None)
        }
    }
}

fn network(event: &mut Value, view: &FlowView<'_>, record: &Record) {
    event["source"] = end(view.source);
    event["destination"] = end(view.destination);
    event["network"] = json!({
        "transport": view.network.transport, "type": view.network.family.as_str(),
        "community_id": view.network.community_id, "direction": view.direction.map(|d| d.as_str()),
        "packets": view.packets, "bytes": view.bytes,
    });
    event["related"] = json!({"ip": [view.source.ip, view.destination.ip]});
    event["event"]["start"] = json!(record.time.to_string());
    event["event"]["end"] = json!(view.last_time.unwrap_or(record.time).to_string());
    event["event"]["reason"] = json!(view.reason());
    if let Some(pod) = view.subject() {
        event["orchestrator"]["namespace"] = json!(pod.namespace);
        event["orchestrator"]["resource"] = json!({"type": "pod", "name": pod.name, "id": pod.uid});
    }
    if let Some(policy) = view.policy() {
        event["rule"] = json!({
            "name": policy.name, "uuid": policy.uid, "ruleset": policy.namespace, "category": "NetworkPolicy",
            "version": policy.generation.map(|generation| generation.to_string()),
        });
    }
    event["observer"]["ingress"] = json!({"interface": {"name": view.device}});
}

fn end(end: &Endpoint) -> Value {
    // EcsKind NAT made of the address is in `nat`, as for a load balancer.
    let (near, nat) = match &end.original {
        Some(original) => ((original.ip, original.port), Some((end.ip, end.port))),
        None => ((end.ip, end.port), None),
    };
    json!({
        "ip": near.0, "address": near.0, "port": near.1,
        "nat": {"ip": nat.map(|nat| nat.0), "port": nat.and_then(|nat| nat.1)}, "domain": end.names.first(),
    })
}
