//! OpenTelemetry log records: the same attributes in OTLP's JSON, a line each, and in the protobuf that the exporter sends. The
//! whole native record is the attribute `netpol_trace.record`.

use serde_json::{Map, Value, json};

use crate::record::format::message::message;
use crate::record::format::view::{FlowView, view};
use crate::record::json::{compact, embedded};
use crate::record::{Body, Record};

/// A log record of the data model.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub time_unix_nano: u64,
    pub severity_number: u8,
    pub severity_text: &'static str,
    pub event_name: &'static str,
    pub body: String,
    pub attributes: Map<String, Value>,
}

/// The instrumentation scope.
pub const SCOPE: &str = "netpol-trace";

/// Returns the resource attributes, the same for all records of a run.
pub fn resource(record: &Record) -> Map<String, Value> {
    object(json!({
        "service.name": "netpol-trace", "service.version": env!("CARGO_PKG_VERSION"), "service.instance.id": record.run,
        "k8s.node.name": record.node, "k8s.cluster.name": record.cluster,
    }))
}

pub fn log(record: &Record) -> Log {
    let (event_name, severity) = match &record.body {
        Body::Drop(_) => ("netpol_trace.packet.denied", WARN),
        Body::Unanswered(_) => ("netpol_trace.connection.unanswered", WARN),
        Body::PolicyChange(_) => ("netpol_trace.policy.changed", INFO),
        Body::Loss(_) => ("netpol_trace.records.lost", ERROR),
        Body::Status(_) => ("netpol_trace.agent.status", INFO),
    };
    let mut attributes = object(json!({
        "log.record.uid": record.id, "netpol_trace.fingerprint": record.fingerprint, "netpol_trace.seq": record.seq,
    }));
    if let Some(view) = view(&record.body) {
        attributes.extend(object(network(&view)));
    }
    if let Body::PolicyChange(change) = &record.body {
        attributes.extend(object(json!({
            "k8s.namespace.name": change.namespace, "security_rule.name": change.policy, "security_rule.uuid": change.uid,
        })));
    }
    attributes.insert("netpol_trace.record".into(), embedded(record));
    Log {
        time_unix_nano: u64::try_from(record.time.as_nanosecond()).unwrap_or_default(),
        severity_number: severity.0,
        severity_text: severity.1,
        event_name,
        body: message(record),
        attributes,
    }
}

const INFO: (u8, &str) = (9, "INFO");
const WARN: (u8, &str) = (13, "WARN");
const ERROR: (u8, &str) = (17, "ERROR");

fn network(view: &FlowView<'_>) -> Value {
    let (pod, policy) = (view.subject(), view.policy());
    json!({
        "source.address": view.source.ip, "source.port": view.source.port,
        "destination.address": view.destination.ip, "destination.port": view.destination.port,
        "network.transport": view.network.transport, "network.type": view.network.family.as_str(),
        "k8s.namespace.name": pod.map(|pod| &pod.namespace), "k8s.pod.name": pod.map(|pod| &pod.name),
        "k8s.pod.uid": pod.and_then(|pod| pod.uid.as_ref()),
        "security_rule.name": policy.map(|policy| &policy.name),
        "security_rule.uuid": policy.and_then(|policy| policy.uid.as_ref()),
        "security_rule.ruleset.name": policy.map(|policy| &policy.namespace),
        "security_rule.category": policy.map(|_| "NetworkPolicy"),
        "netpol_trace.direction": view.direction.map(|direction| direction.as_str()),
        "netpol_trace.cause": view.why, "netpol_trace.reason": view.reason(),
        "netpol_trace.community_id": view.network.community_id, "netpol_trace.count": view.packets,
    })
}

fn object(value: Value) -> Map<String, Value> {
    match compact(value) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// OTLP's JSON of one record, as the collector's otlpjson connector and file receiver read it.
pub fn line(record: &Record) -> Value {
    let log = log(record);
    json!({"resourceLogs": [{
        "resource": {"attributes": pairs(&resource(record))},
        "scopeLogs": [{
            "scope": {"name": SCOPE, "version": env!("CARGO_PKG_VERSION")},
            "logRecords": [{
                "timeUnixNano": log.time_unix_nano.to_string(), "observedTimeUnixNano": log.time_unix_nano.to_string(),
                "severityNumber": log.severity_number, "severityText": log.severity_text, "eventName": log.event_name,
                "body": {"stringValue": log.body}, "attributes": pairs(&log.attributes),
            }],
        }],
    }]})
}

fn pairs(map: &Map<String, Value>) -> Value {
    map.iter().map(|(key, value)| json!({"key": key, "value": any(value)})).collect()
}

/// 64-bit integers are strings in OTLP's JSON.
fn any(value: &Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(value) => json!({"boolValue": value}),
        Value::Number(number) => match number.as_i64() {
            Some(number) => json!({"intValue": number.to_string()}),
            None => json!({"doubleValue": number}),
        },
        Value::String(text) => json!({"stringValue": text}),
        Value::Array(values) => json!({"arrayValue": {"values": values.iter().map(any).collect::<Vec<_>>()}}),
        Value::Object(map) => json!({"kvlistValue": {"values": pairs(map)}}),
    }
}
