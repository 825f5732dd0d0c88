//! The record budget: above so many records a second, drops are folded by workloads instead of flows. Exactly: every packet is
//! in the count of one record.

use std::collections::HashMap;
use std::time::Instant;

use jiff::Timestamp;

use crate::enrich::{Flow, Named, OwnedBy};
use crate::packet::{Facts, Packet};
use crate::record::{Body, Cause, Direction, Drop, FoldedBy, Hook, Mechanism};

/// Seconds of the rate that may go out at once, after a quiet time.
const BURST: f64 = 10.0;
/// Folds at once; what comes then is folded without the port, and when there are as many again, by its cause alone.
const MAX_FOLDS: usize = 1024;
/// Ends that are no workload are told apart by networks of so many bits.
const SUBNET_V4: u8 = 24;
const SUBNET_V6: u8 = 64;

#[derive(Debug)]
pub struct Budget {
    /// Records a second.
    rate: f64,
    left: f64,
    refilled: Instant,
    folds: HashMap<Key, Folded>,
}

/// What packets of a fold have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// `None`: too many kinds of drops at once.
    ends: Option<Ends>,
    cause: Cause,
    direction: Option<Direction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ends {
    source: Who,
    destination: Who,
    port: Option<u16>,
    /// Of any port.
    all_ports: bool,
    protocol: u8,
    netns: Option<u32>,
    mechanism: Mechanism,
    hook: Option<Hook>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    /// Namespace, kind and name of what the pod belongs to; of the pod itself where nothing owns it.
    Workload(String, String, String),
    Node(String),
    Subnet(ipnet::IpNet),
}

#[derive(Debug)]
struct Folded {
    /// The first one's record, which has the sums.
    drop: Box<Drop>,
    first: Timestamp,
}

impl Budget {
    pub fn new(records_per_second: u32, now: Instant) -> Budget {
        let rate = f64::from(records_per_second);
        Budget { rate, left: rate * BURST, refilled: now, folds: HashMap::new() }
    }

    /// Takes one record out of the budget; false when there is none left.
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

    /// Adds packets to the fold of their kind. `Some`: they are the first of it, and their record is to be made.
    pub fn add(&mut self, key: Key, packets: &Sums) -> Option<Key> {
        let room = |key: &Key, most: usize| self.folds.contains_key(key) || self.folds.len() < most;
        let (cause, direction) = (key.cause, key.direction);
        let key = if room(&key, MAX_FOLDS) { key } else { key.of_any_port() };
        let key = if room(&key, 2 * MAX_FOLDS) { key } else { Key { ends: None, cause, direction } };
        let Some(Folded { drop, first }) = self.folds.get_mut(&key) else { return Some(key) };
        drop.count += packets.count;
        drop.bytes += packets.bytes;
        drop.segments = Some(drop.segments.unwrap_or_default() + packets.segments);
        drop.last_time = drop.last_time.max(Some(packets.last));
        *first = (*first).min(packets.first);
        None
    }

    /// Begins a fold with its first packets' record.
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
        drop.folded_by = Some(FoldedBy { because: "record_budget".into(), same });
        drop.source.port = None;
        drop.network.community_id = None;
        (drop.count, drop.bytes) = (packets.count, packets.bytes);
        drop.segments = Some(packets.segments);
        drop.last_time = Some(packets.last);
        self.folds.insert(key, Folded { drop, first: packets.first });
    }

    /// Ends all folds.
    pub fn take(&mut self) -> impl Iterator<Item = (Body, Timestamp, u64)> {
        std::mem::take(&mut self.folds).into_values().map(|Folded { mut drop, first }| {
            let count = drop.count;
            drop.segments = drop.segments.filter(|segments| *segments > count);
            drop.last_time = drop.last_time.filter(|last| *last > first);
            (Body::Drop(drop), first, count)
        })
    }
}

/// What a record says of how many packets there were, and when.
#[derive(Debug, Clone, Copy)]
pub struct Sums {
    pub count: u64,
    pub bytes: u64,
    pub segments: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

impl Key {
    pub fn of(flow: &Flow<'_>, packet: &Packet, facts: &Facts, cause: Cause, direction: Option<Direction>) -> Key {
        let ends = Ends {
            source: who(&flow.source),
            destination: who(&flow.destination),
            port: flow.destination.port,
            all_ports: false,
            protocol: packet.headers.protocol,
            netns: facts.netns,
            mechanism: facts.site.mechanism,
            hook: facts.site.hook,
        };
        Key { ends: Some(ends), cause, direction }
    }

    /// The same of every port.
    fn of_any_port(&self) -> Key {
        let ends = self.ends.clone().map(|ends| Ends { port: None, all_ports: true, ..ends });
        Key { ends, ..*self }
    }
}

fn who(named: &Named<'_>) -> Who {
    if let Some(view) = named.pod() {
        let pod = view.pod;
        let (kind, name) = match &pod.owner {
            Some(owner) => (owner.kind.to_string(), owner.name.to_string()),
            None => ("Pod".to_owned(), pod.name.to_string()),
        };
        return Who::Workload(pod.namespace.to_string(), kind, name);
    }
    if let OwnedBy::Node(name) = named.owner {
        return Who::Node(name.to_string());
    }
    let bits = if named.ip.is_ipv4() { SUBNET_V4 } else { SUBNET_V6 };
    Who::Subnet(ipnet::IpNet::new_assert(named.ip, bits).trunc())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(5, start);
        assert_eq!((0..100).filter(|_| budget.spend(start)).count(), 50);
        assert_eq!((0..100).filter(|_| budget.spend(start + Duration::from_secs(1))).count(), 5);
        assert_eq!((0..100).filter(|_| budget.spend(start + Duration::from_secs(100))).count(), 50);
    }
}
