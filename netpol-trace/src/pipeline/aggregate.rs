//! The record budget: above a number of records per second, drops are aggregated by workload instead of by flow. Every packet is in the
//! count of exactly one record.

use std::collections::HashMap;
use std::time::Instant;

use foldhash::fast::RandomState;
use jiff::Timestamp;

use crate::model::packet::{Packet, Repeats};
use crate::model::{Cause, Direction, Hook, Mechanism, Site, Str};
use crate::pipeline::enrich::{Flow, Named, OwnedBy};
use crate::record::{AggregatedBy, Body, Drop};

/// Size of a burst after a quiet time, in seconds of the rate.
const BURST: f64 = 10.0;
/// Aggregates at once. Further drops are aggregated without the port, and after as many again by cause and direction only.
const MAX_FOLDS: usize = 1024;
/// Prefix lengths by which endpoints that are no workload are aggregated.
const SUBNET_V4: u8 = 24;
const SUBNET_V6: u8 = 64;

#[derive(Debug)]
pub struct Budget {
    /// Records per second.
    rate: f64,
    left: f64,
    refilled: Instant,
    /// Uses foldhash: std's hash costs more than all other work on a packet here. Senders choose addresses and ports, but they never see
    /// the seed or anything derived from it, and there are few aggregates, so nobody can make the map slow.
    folds: HashMap<Key, Folded, RandomState>,
}

/// What the packets of an aggregate have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// `None` where there are too many kinds of drops at once.
    ends: Option<Ends>,
    cause: Cause,
    direction: Option<Direction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ends {
    source: Who,
    destination: Who,
    port: Option<u16>,
    /// The aggregate has packets of any port.
    all_ports: bool,
    protocol: u8,
    netns: Option<u32>,
    mechanism: Mechanism,
    hook: Option<Hook>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    /// Namespace, kind and name of the pod's owner; without a kind, the pod itself has no owner.
    Workload(Str, Option<Str>, Str),
    Node(Str),
    Subnet(ipnet::IpNet),
}

#[derive(Debug)]
struct Folded {
    /// The record of the first packets; it holds the sums.
    drop: Box<Drop>,
    first: Timestamp,
}

impl Budget {
    pub fn new(records_per_second: u32, now: Instant) -> Budget {
        let rate = f64::from(records_per_second);
        Budget { rate, left: rate * BURST, refilled: now, folds: HashMap::default() }
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
    /// first: the caller makes their record and calls [`Budget::begin`].
    pub fn add(&mut self, mut key: Key, packets: &Sums) -> Option<Key> {
        for most in [MAX_FOLDS, 2 * MAX_FOLDS] {
            if let Some(fold) = self.folds.get_mut(&key) {
                fold.add(packets);
                return None;
            }
            if self.folds.len() < most {
                return Some(key);
            }
            key = key.coarser();
        }
        let Some(fold) = self.folds.get_mut(&key) else { return Some(key) };
        fold.add(packets);
        None
    }

    /// Begins an aggregate with the record of its first packets.
    pub fn begin(&mut self, key: Key, mut drop: Box<Drop>, packets: &Sums) {
        let mut same = vec!["cause".into(), "direction".into()];
        match &key.ends {
            Some(ends) => {
                let what = |who: &Who| if matches!(who, Who::Subnet(_)) { "subnet" } else { "workload" };
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
        drop.aggregated_by = Some(AggregatedBy { because: "record_budget".into(), same });
        drop.source.port = None;
        drop.network.community_id = None;
        (drop.count, drop.bytes) = (packets.count, packets.bytes);
        drop.segments = Some(packets.segments);
        drop.last_time = Some(packets.last);
        self.folds.insert(key, Folded { drop, first: packets.first });
    }

    /// Ends all aggregates and returns their records.
    pub fn take(&mut self) -> impl Iterator<Item = (Body, Timestamp, u64)> {
        std::mem::take(&mut self.folds).into_values().map(|Folded { mut drop, first }| {
            let count = drop.count;
            drop.segments = drop.segments.filter(|segments| *segments > count);
            drop.last_time = drop.last_time.filter(|last| *last > first);
            (Body::Drop(drop), first, count)
        })
    }
}

impl Folded {
    fn add(&mut self, packets: &Sums) {
        let Folded { drop, first } = self;
        drop.count += packets.count;
        drop.bytes += packets.bytes;
        drop.segments = Some(drop.segments.unwrap_or_default() + packets.segments);
        drop.last_time = drop.last_time.max(Some(packets.last));
        *first = (*first).min(packets.first);
    }
}

/// Number, size and times of the packets in a record.
#[derive(Debug, Clone, Copy)]
pub struct Sums {
    pub count: u64,
    pub bytes: u64,
    pub segments: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

impl Sums {
    /// Sums of the packets that one drop stands for.
    pub fn of(packet: &Packet, repeats: &Repeats, first: Timestamp, last: Timestamp) -> Sums {
        let (bytes, segments) = (repeats.bytes(packet), repeats.segments(packet));
        Sums { count: repeats.packets(), bytes, segments, first, last }
    }
}

impl Key {
    pub fn of(
        flow: &Flow<'_>,
        packet: &Packet,
        site: Site,
        netns: Option<u32>,
        cause: Cause,
        direction: Option<Direction>,
    ) -> Key {
        let ends = Ends {
            source: who(&flow.source),
            destination: who(&flow.destination),
            port: flow.destination.port,
            all_ports: false,
            protocol: packet.headers.protocol,
            netns,
            mechanism: site.mechanism,
            hook: site.hook,
        };
        Key { ends: Some(ends), cause, direction }
    }

    /// Returns a coarser key: without the port; from there, by cause and direction only.
    fn coarser(self) -> Key {
        let ends = self.ends.filter(|ends| !ends.all_ports);
        Key { ends: ends.map(|ends| Ends { port: None, all_ports: true, ..ends }), ..self }
    }
}

fn who(named: &Named<'_>) -> Who {
    if let Some(view) = named.pod() {
        let pod = view.pod;
        return match &pod.owner {
            Some(owner) => Who::Workload(pod.namespace.clone(), Some(owner.kind.clone()), owner.name.clone()),
            None => Who::Workload(pod.namespace.clone(), None, pod.name.clone()),
        };
    }
    if let OwnedBy::Node(name) = named.owner {
        return Who::Node(name.clone());
    }
    let bits = if named.ip.is_ipv4() { SUBNET_V4 } else { SUBNET_V6 };
    Who::Subnet(ipnet::IpNet::new_assert(named.ip, bits).trunc())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::Index;
    use crate::model::{Action, Answers, Candidate, Enrichment, Facts};
    use crate::pipeline::build::drop_body;
    use crate::pipeline::decide::RenderedDecision;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(5, start);
        assert_eq!((0..100).filter(|_| budget.spend(start)).count(), 50);
        assert_eq!((0..100).filter(|_| budget.spend(start + Duration::from_secs(1))).count(), 5);
        assert_eq!((0..100).filter(|_| budget.spend(start + Duration::from_secs(100))).count(), 50);
    }

    /// With more kinds of drops than there is room for, keys get coarser, and every packet stays in a count.
    #[test]
    fn folds_get_coarser_and_stay_exact() {
        let mut budget = Budget::new(1, Instant::now());
        let mut event = crate::packet::tests::syn();
        let first = Timestamp::UNIX_EPOCH;
        let packets = Sums { count: 3, bytes: 120, segments: 3, first, last: first };
        let site = Site { mechanism: Mechanism::Nftables, candidate: Candidate::Policy, hook: Some(Hook::Forward) };
        let facts = Facts {
            reason: None,
            location: None,
            site,
            device: None,
            netns: Some(1),
            rejected: false,
            answers: Answers::default(),
        };
        let index = Index::default();
        let mut begun = 0;
        for subnet in 0..2 * MAX_FOLDS as u32 + 10 {
            // Another /24 each time; to a second port once there is no room for it.
            event.head[12..16].copy_from_slice(&(0x0100_0000 + (subnet << 8)).to_be_bytes());
            for port in [80_u16, 81] {
                event.head[22..24].copy_from_slice(&port.to_be_bytes());
                let packet = crate::packet::decode(&event).unwrap();
                let moment = index.now();
                let flow = crate::pipeline::enrich::name(&packet, &moment);
                let key = Key::of(&flow, &packet, site, Some(1), Cause::Policy, None);
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
        let folds: Vec<_> = budget.take().collect();
        assert_eq!(folds.len(), begun);
        // By port; of any port; by cause.
        assert_eq!(folds.len(), 2 * MAX_FOLDS + 1);
        assert_eq!(folds.iter().map(|(_, _, count)| count).sum::<u64>(), 2 * 3 * (2 * MAX_FOLDS as u64 + 10));
        let by_port = |(body, _, _): &&(Body, Timestamp, u64)| matches!(body, Body::Drop(drop) if drop.destination.port.is_some());
        assert_eq!(folds.iter().filter(by_port).count(), MAX_FOLDS);
        assert_eq!(budget.take().count(), 0);
    }
}
