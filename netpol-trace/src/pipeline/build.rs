//! Builds the record of a drop from its flow, the kernel's facts and the decision. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::decide::RenderedDecision;
use crate::model::cluster::{Labels, Pod};
use crate::model::packet::{Granularity, Packet, PacketCount, transport_name};
use crate::model::{AggregationReason, DropFacts, DropSite, OwnerRef, PodRef, Str};
use crate::pipeline::enrich::{Flow, FlowEndpoint, Identity};
use crate::record::community_id::community_id;
use crate::record::{AggregatedBy, Drop, Endpoint, Icmp, Kernel, Network};

/// Limits of untrusted input in a record: labels per pod, and bytes of one label or name.
const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 253;

/// Builds the record of a drop. `site` is the drop site as refined by the inventory.
pub(super) fn drop_body(
    packet: &Packet,
    facts: &DropFacts,
    site: DropSite,
    flow: &Flow<'_>,
    decision: RenderedDecision,
) -> Drop {
    let headers = &packet.headers;
    Drop {
        last_time: None,
        count: 1,
        segments: (packet.segments > 1).then_some(u64::from(packet.segments)),
        bytes: u64::from(packet.length),
        cause: decision.cause,
        direction: decision.direction,
        action: decision.action,
        source: endpoint(&flow.source),
        destination: endpoint(&flow.destination),
        network: Network {
            transport: transport_name(headers.protocol),
            family: packet.family(),
            tcp_flags: headers.tcp_flag_names().map(Into::into).collect(),
            community_id: community_id(
                (headers.source, headers.destination),
                headers.protocol,
                headers.source_port.zip(headers.destination_port),
                headers.icmp,
            ),
            length: packet.length,
            fragment: headers.fragment,
        },
        reply: flow.reply,
        icmp: headers.icmp.map(|(kind, code)| Icmp { kind, code }),
        kernel: Kernel {
            reason: facts.reason.clone(),
            location: facts.location.clone(),
            hook: site.hook,
            mechanism: site.mechanism,
            device: facts.device.clone(),
            netns: facts.netns,
        },
        verdict: decision.verdict,
        hint: decision.hint,
        enrichment: decision.enrichment,
        spoofed: false,
        aggregated_by: None,
        truncated: false,
    }
}

impl Drop {
    /// Sets the counts. `packet` is the packet that the rest of the record describes.
    pub fn counts(&mut self, packet: &Packet, packet_count: &PacketCount, last: Timestamp) {
        self.count = packet_count.packets();
        self.bytes = packet_count.bytes(packet);
        let segments = packet_count.segments(packet);
        self.segments = (segments > self.count).then_some(segments);
        self.last_time = (self.count > 1).then_some(last);
        let same: &[&str] = match packet_count.granularity {
            Granularity::Flow => return,
            Granularity::AnySourcePort => {
                &["source.ip", "destination.ip", "destination.port", "network.transport", "kernel"]
            }
            Granularity::AnyPorts => {
                let end = &mut self.destination;
                end.port = None;
                end.original.iter_mut().for_each(|original| original.port = None);
                end.service.iter_mut().for_each(|service| service.port = None);
                &["source.ip", "destination.ip", "network.transport", "kernel"]
            }
        };
        let same = same.iter().copied().map(Into::into).collect();
        self.aggregated_by = Some(AggregatedBy { because: AggregationReason::FlowMapFull.into(), same });
        self.network.community_id = None;
        self.source.port = None;
    }
}

pub(crate) fn endpoint(endpoint: &FlowEndpoint<'_>) -> Endpoint {
    Endpoint {
        kind: endpoint.identity.kind(),
        ip: endpoint.ip,
        port: endpoint.port,
        pod: endpoint.pod().map(|view| view.described(describe).clone()),
        node: match endpoint.identity {
            Identity::Node(name) => Some(short(name)),
            _ => None,
        },
        service: endpoint.service.clone(),
        original: endpoint.original,
        names: Vec::new(),
        note: match endpoint.identity {
            Identity::Ambiguous(pods) => Some(format!("{pods} pods claim this address").into()),
            Identity::Reused(one, other) => Some(
                format!("{} and {} had this address one after the other, at about this time", full(one), full(other))
                    .into(),
            ),
            Identity::Former(pod) => Some(format!("no pod had this address any more; before: {}", full(pod)).into()),
            Identity::Unconfirmed => {
                Some("whose address it is was not known, or not confirmed, when the record was made".into())
            }
            Identity::Unknown => Some("in the pod network, but no known pod has this address".into()),
            _ => None,
        },
    }
}

fn describe(pod: &Pod) -> PodRef {
    PodRef {
        namespace: clip(&pod.namespace),
        name: clip(&pod.name),
        uid: pod.uid.as_deref().map(clip),
        labels: labels(&pod.labels),
        owner: pod.owner.as_ref().map(|o| OwnerRef { kind: clip(&o.kind), name: clip(&o.name) }),
        node: pod.node.as_deref().map(clip),
    }
}

fn full(pod: &Pod) -> String {
    format!("{}/{}", clip(&pod.namespace), clip(&pod.name))
}

fn labels(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().take(MAX_LABELS).map(|(k, v)| (clip(k), clip(v))).collect()
}

/// Returns the same text if it is short enough, else a shortened copy.
fn short(text: &Str) -> Str {
    if text.len() <= MAX_TEXT { text.clone() } else { clip(text).into() }
}

/// Returns at most [`MAX_TEXT`] bytes, cut between characters.
fn clip(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}
