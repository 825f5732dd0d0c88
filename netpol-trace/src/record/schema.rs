//! The record's types. Names of fields and values are a contract; absent means unknown, never a default.

use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::change::PolicyChange;
use super::fingerprint::Fingerprint;
use super::state::Status;
use crate::model::part::Part;
use crate::model::{
    Action, Address, AggregationReason, Cause, Direction, EndpointKind, Enrichment, Family, Hint, Hook, Loss,
    Mechanism, PodRef, ServiceRef, Str, Text, UnansweredBasis, Verdict,
};

/// The value of every record's `schema` field.
pub const SCHEMA: &str = "netpol-trace/v1";

/// One line of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Always `netpol-trace/v1`.
    pub schema: Text,
    /// `run/number`, the same in every sink. No two records have the same.
    pub id: String,
    /// Equal in two agents' records of the same packet, connection or policy change: see *Records of the same thing*.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "Fingerprint::lenient")]
    #[schemars(with = "Option<String>")]
    pub fingerprint: Option<Fingerprint>,
    /// The run's id: one start of the agent. 16 hexadecimal digits.
    #[schemars(with = "String")]
    pub run: Str,
    /// Gapless per sink and run, from 1.
    pub seq: u64,
    /// When it happened; of an aggregated drop, of the first packet.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// The cluster's name, from `--cluster-name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cluster: Option<Str>,
    /// The name of the agent's node, from `--node-name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub node: Option<Str>,
    #[serde(flatten)]
    pub body: Body,
}

/// The content of a record, by its `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    Drop(Box<Drop>),
    Unanswered(Box<Unanswered>),
    Loss(Loss),
    PolicyChange(Box<PolicyChange>),
    Status(Box<Status>),
}

/// One packet that the kernel dropped, or several of one flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Drop {
    /// The last packet's time, when `count` is more than 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_time: Option<Timestamp>,
    /// Packets, as nft and iptables count them (skbs).
    pub count: u64,
    /// What the packets would be on the wire, where segmentation offload makes that more than `count`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<u64>,
    /// Length in bytes from the network header on, of all packets.
    pub bytes: u64,
    pub cause: Cause,
    /// The side whose policy denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Whether the enforcer rejected the packet, so that the sender got an ICMP error or a TCP reset.
    pub action: Action,
    pub source: Endpoint,
    pub destination: Endpoint,
    pub network: Network,
    /// The packet goes against the direction of its connection; `source` and `destination` are the connection's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reply: bool,
    /// The packet's source address is not its pod's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spoofed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    pub kernel: Kernel,
    /// What the policies decide about the connection; absent where they were not evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Verdict>")]
    pub verdict: Option<Part<Verdict>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Hint>")]
    pub hint: Option<Part<Hint>>,
    pub enrichment: Enrichment,
    /// The packets are of several flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_by: Option<AggregatedBy>,
    /// Labels, or all but the first policies, were left out to keep the line under 16 KiB.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// Why packets of several flows are one record, and the fields they share. All other fields are the first packet's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AggregatedBy {
    #[schemars(with = "AggregationReason")]
    pub because: Text,
    /// Fields, or `source.workload`, `source.subnet` (/24 or /64) and the same of the destination.
    pub same: Vec<Text>,
}

/// A connection that got no reply although the agent saw no drop on this node. A guess, so not part of packet accounting. Connections of one
/// client to one port within a minute are one record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Unanswered {
    /// Connections.
    pub count: u64,
    /// Packets that the latest one sent. Of UDP, above 64, those of the last milliseconds may be missing.
    pub packets: u64,
    /// How long the agent waited for a reply.
    pub waited_seconds: u64,
    /// `egress`: a pod of this node opened it; `ingress`: it was opened towards a pod of this node.
    pub direction: Direction,
    #[schemars(with = "UnansweredBasis")]
    pub basis: Text,
    /// Its packets reached the destination pod's interface on this node: the pod itself did not answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delivered: bool,
    pub source: Endpoint,
    pub destination: Endpoint,
    /// Of the first packet.
    pub network: Network,
    /// The pod's interface, on the node's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Absent for a service's address: which backend was chosen is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Verdict>")]
    pub verdict: Option<Part<Verdict>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Hint>")]
    pub hint: Option<Part<Hint>>,
    pub enrichment: Enrichment,
    /// Labels, or all but the first policies, were left out to keep the line under 16 KiB.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// The source or the destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    pub kind: EndpointKind,
    pub ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PodRef>")]
    pub pod: Option<Part<PodRef>>,
    /// The node's name, if the endpoint is a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub node: Option<Str>,
    /// The service whose address the client used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// The address before NAT, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<Address>,
    /// DNS names that the client resolved to this address, newest first. Untrusted; ASCII only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Why an endpoint is `unknown`, or which pods share its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Text>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// `tcp`, `udp`, `sctp`, `icmp`, `ipv6-icmp`, or the protocol's number.
    pub transport: Text,
    pub family: Family,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp_flags: Vec<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub community_id: Option<String>,
    /// Length in bytes from the network header on, of the first packet.
    pub length: u32,
    /// A later fragment: it has no ports.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fragment: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Icmp {
    #[serde(rename = "type")]
    pub kind: u8,
    pub code: u8,
}

/// The kernel's evidence of the drop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// The drop reason without `SKB_DROP_REASON_`; absent before Linux 5.17.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub reason: Option<Str>,
    /// The function that freed the packet, a bare symbol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub location: Option<Str>,
    /// Where in netfilter or tc the packet was dropped; absent where the call site does not show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    pub mechanism: Mechanism,
    /// The packet's device at the drop.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub device: Option<Str>,
    /// Inode number of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
}
