//! The record budget: above a number of records per second, drops are aggregated by workload instead of by flow. Every packet is in the
//! count of exactly one record.

use std::collections::HashMap;
use std::time::Instant;

use foldhash::fast::RandomState;
use jiff::Timestamp;

use crate::model::packet::{Packet, PacketCount};
use crate::model::{AggregationReason, Cause, Direction, DropSite, Hook, Mechanism, Str};
use crate::pipeline::enrich::{Flow, FlowEndpoint, Identity};
use crate::record::{AggregatedBy, Body, Drop};

/// Size of a burst after a quiet time, in seconds of the rate.
const BURST: f64 = 10.0;
/// Aggregates at once. Further drops are aggregated without the port, and after as many again by cause and direction only.
const MAX_AGGREGATES: usize = 1024;
/// Prefix lengths by which endpoints that are no workload are aggregated.
const SUBNET_V4: u8 = 24;
const SUBNET_V6: u8 = 64;

#[derive(Debug)]
pub struct RecordBudget {
    /// Records per second.
    rate: f64,
    left: f64,
    refilled: Instant,
    /// Uses foldhash: std's hash costs more than all other work on a packet here. Senders choose addresses and ports, but they never see
    /// the seed or anything derived from it, and there are few aggregates, so nobody can make the map slow.
    aggregates: HashMap<WorkloadKey, Aggregate, RandomState>,
}

/// What the packets of an aggregate have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadKey {
    /// `None` where there are too many kinds of drops at once.
    ends: Option<WorkloadScope>,
    cause: Cause,
    direction: Option<Direction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct WorkloadScope {
    source: Party,
    destination: Party,
    port: Option<u16>,
    /// The aggregate has packets of any port.
    all_ports: bool,
    protocol: u8,
    netns: Option<u32>,
    mechanism: Mechanism,
    hook: Option<Hook>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Party {
    /// Namespace, kind and name of the pod's owner; without a kind, the pod itself has no owner.
    Workload(Str, Option<Str>, Str),
    Node(Str),
    Subnet(ipnet::IpNet),
}

#[derive(Debug)]
struct Aggregate {
    /// The record of the first packets; it holds the sums.
    drop: Box<Drop>,
    first: Timestamp,
}

impl RecordBudget {
    pub fn new(records_per_second: u32, now: Instant) -> RecordBudget {
        let rate = f64::from(records_per_second);
        RecordBudget { rate, left: rate * BURST, refilled: now, aggregates: HashMap::default() }
    }

    /// Takes one record out of the budget. Returns false when none is left.
    pub fn spend(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.left = (self.left + elapsed * self.rate).min(self.rate * BURST);
        self.refilled = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }

    /// Adds packets to the aggregate of their key, or of a coarser key when there is no room. Returns the key if these packets are the
    /// first: the caller makes their record and calls [`RecordBudget::begin`].
    pub fn add(&mut self, mut key: WorkloadKey, packets: &PacketSums) -> Option<WorkloadKey> {
        for most in [MAX_AGGREGATES, 2 * MAX_AGGREGATES] {
            if let Some(aggregate) = self.aggregates.get_mut(&key) {
                aggregate.add(packets);
                return None;
            }
            if self.aggregates.len() < most {
                return Some(key);
            }
            key = key.coarser();
        }
        let Some(aggregate) = self.aggregates.get_mut(&key) else { return Some(key) };
        aggregate.add(packets);
        None
    }

    /// Begins an aggregate with the record of its first packets.
    pub fn begin(&mut self, key: WorkloadKey, mut drop: Box<Drop>, packets: &PacketSums) {
        let mut same = vec!["cause".into(), "direction".into()];
        match &key.ends {
            Some(ends) => {
                let what = |party: &Party| if matches!(party, Party::Subnet(_)) { "subnet" } else { "workload" };
                same.push(format!("source.{}", what(&ends.source)).into());
                same.push(format!("destination.{}", what(&ends.destination)).into());
                if ends.all_ports {
                    drop.destination.port = None;
                } else {
                    same.push("destination.port".into());
                }
                same.push("network.transport".into());
                same.extend(["kernel.netns", "kernel.mechanism", "kernel.hook"].map(Into::into));
            }
            None => drop.destination.port = None,
        }
        drop.aggregated_by = Some(AggregatedBy { because: AggregationReason::RecordBudget.into(), same });
        drop.source.port = None;
        drop.network.community_id = None;
        (drop.count, drop.bytes) = (packets.count, packets.bytes);
        drop.segments = Some(packets.segments);
        drop.last_time = Some(packets.last);
        self.aggregates.insert(key, Aggregate { drop, first: packets.first });
    }

    /// Ends all aggregates and returns their records.
    pub fn take(&mut self) -> impl Iterator<Item = (Body, Timestamp, u64)> {
        std::mem::take(&mut self.aggregates).into_values().map(|Aggregate { mut drop, first }| {
            let count = drop.count;
            drop.segments = drop.segments.filter(|segments| *segments > count);
            drop.last_time = drop.last_time.filter(|last| *last > first);
            (Body::Drop(drop), first, count)
        })
    }
}

impl Aggregate {
    fn add(&mut self, packets: &PacketSums) {
        let Aggregate { drop, first } = self;
        drop.count += packets.count;
        drop.bytes += packets.bytes;
        drop.segments = Some(drop.segments.unwrap_or_default() + packets.segments);
        drop.last_time = drop.last_time.max(Some(packets.last));
        *first = (*first).min(packets.first);
    }
}

/// Number, size and times of the packets in a record.
#[derive(Debug, Clone, Copy)]
pub struct PacketSums {
    pub count: u64,
    pub bytes: u64,
    pub segments: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

impl PacketSums {
    /// Sums of the packets that one drop stands for.
    pub fn of(packet: &Packet, packet_count: &PacketCount, first: Timestamp, last: Timestamp) -> PacketSums {
        let (bytes, segments) = (packet_count.bytes(packet), packet_count.segments(packet));
        PacketSums { count: packet_count.packets(), bytes, segments, first, last }
    }
}

impl WorkloadKey {
    pub fn of(
        flow: &Flow<'_>,
        packet: &Packet,
        site: DropSite,
        netns: Option<u32>,
        cause: Cause,
        direction: Option<Direction>,
    ) -> WorkloadKey {
        let ends = WorkloadScope {
            source: party(&flow.source),
            destination: party(&flow.destination),
            port: flow.destination.port,
            all_ports: false,
            protocol: packet.headers.protocol,
            netns,
            mechanism: site.mechanism,
            hook: site.hook,
        };
        WorkloadKey { ends: Some(ends), cause, direction }
    }

    /// Returns a coarser key: without the port; from there, by cause and direction only.
    fn coarser(self) -> WorkloadKey {
        let ends = self.ends.filter(|ends| !ends.all_ports);
        WorkloadKey { ends: ends.map(|ends| WorkloadScope { port: None, all_ports: true, ..ends }), ..self }
    }
}

fn party(endpoint: &FlowEndpoint<'_>) -> Party {
    if let Some(view) = endpoint.pod() {
        let pod = view.pod;
        return match &pod.owner {
            Some(owner) => Party::Workload(pod.namespace.clone(), Some(owner.kind.clone()), owner.name.clone()),
            None => Party::Workload(pod.namespace.clone(), None, pod.name.clone()),
        };
    }
    if let Identity::Node(name) = endpoint.identity {
        return Party::Node(name.clone());
    }
    let bits = if endpoint.ip.is_ipv4() { SUBNET_V4 } else { SUBNET_V6 };
    Party::Subnet(ipnet::IpNet::new_assert(endpoint.ip, bits).trunc())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::Index;
    use crate::model::{Action, DropFacts, Enrichment, PolicyRelevance, RejectVisibility};
    use crate::pipeline::build::drop_body;
    use crate::pipeline::decide::RenderedDecision;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut budget = RecordBudget::new(5, start);
        assert_eq!((0..100).filter(|_| budget.spend(start)).count(), 50);
        assert_eq!((0..100).filter(|_| budget.spend(start + Duration::from_secs(1))).count(), 5);
        assert_eq!((0..100).filter(|_| budget.spend(start + Duration::from_secs(100))).count(), 50);
    }

    /// With more kinds of drops than there is room for, keys get coarser, and every packet stays in a count.
    #[test]
    fn aggregates_get_coarser_and_stay_exact() {
        let mut budget = RecordBudget::new(1, Instant::now());
        let mut event = crate::packet::tests::syn();
        let first = Timestamp::UNIX_EPOCH;
        let packets = PacketSums { count: 3, bytes: 120, segments: 3, first, last: first };
        let site =
            DropSite { mechanism: Mechanism::Nftables, relevance: PolicyRelevance::Likely, hook: Some(Hook::Forward) };
        let facts = DropFacts {
            reason: None,
            location: None,
            site,
            device: None,
            netns: Some(1),
            rejected: false,
            visible_rejects: RejectVisibility::default(),
        };
        let index = Index::default();
        let mut begun = 0;
        for subnet in 0..2 * MAX_AGGREGATES as u32 + 10 {
            // Another /24 each time; to a second port once there is no room for it.
            event.head[12..16].copy_from_slice(&(0x0100_0000 + (subnet << 8)).to_be_bytes());
            for port in [80_u16, 81] {
                event.head[22..24].copy_from_slice(&port.to_be_bytes());
                let packet = crate::packet::decode(&event).unwrap();
                let moment = index.now();
                let flow = crate::pipeline::enrich::name(&packet, crate::pipeline::opener::Opener::Source, &moment);
                let key = WorkloadKey::of(&flow, &packet, site, Some(1), Cause::Policy, None);
                let Some(key) = budget.add(key, &packets) else { continue };
                begun += 1;
                let decision = RenderedDecision {
                    cause: Cause::Policy,
                    action: Action::Drop,
                    direction: None,
                    verdict: None,
                    hint: None,
                    enrichment: Enrichment::Complete,
                };
                let drop = drop_body(&packet, &facts, site, &flow, decision);
                budget.begin(key, Box::new(drop), &packets);
            }
        }
        let aggregates: Vec<_> = budget.take().collect();
        assert_eq!(aggregates.len(), begun);
        // By port; of any port; by cause.
        assert_eq!(aggregates.len(), 2 * MAX_AGGREGATES + 1);
        assert_eq!(aggregates.iter().map(|(_, _, count)| count).sum::<u64>(), 2 * 3 * (2 * MAX_AGGREGATES as u64 + 10));
        let by_port = |(body, _, _): &&(Body, Timestamp, u64)| matches!(body, Body::Drop(drop) if drop.destination.port.is_some());
        assert_eq!(aggregates.iter().filter(by_port).count(), MAX_AGGREGATES);
        assert_eq!(budget.take().count(), 0);
    }
}
