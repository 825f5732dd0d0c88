//! The aggregate stage: joins the first packet of each flow with the count of the packets after it.
//!
//! The agent hands on the first packet of a flow at once. A flow that was counted in the window before gets one record per window: its
//! first packet is pending until the agent reads the count.

mod from_key;
pub(super) mod maps;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::MapData;
// Keys are long; seeded for each run, and no more of them than the kernel's maps hold.
use foldhash::fast::RandomState;
use netpol_trace_common::DropEvent;
use netpol_trace_common::aggregate::{AggregateCount, AggregateKey, AggregateState, COARSE, NOT_AGGREGATED, WIDE};

use super::bpf::{self, GracePeriod};
use super::drop::AggregatedDrop;
use super::handover::Handover;
use crate::model::packet::{Granularity, Packet, PacketCount, PacketError};
use maps::MapSet;

/// Reads the counts of both sets of maps and remembers first packets.
pub struct Aggregator {
    sets: [MapSet; 2],
    state: MapData,
    /// The set that the programs use: 0 or 1.
    active: u32,
    grace: GracePeriod,
    handover: Arc<Handover>,
    /// First packets of the window that is being counted.
    firsts: HashMap<AggregateKey, FirstPacket, RandomState>,
    /// Flows that were counted in the window before.
    counted: HashSet<AggregateKey, RandomState>,
}

#[derive(Debug)]
struct FirstPacket {
    drop: AggregatedDrop,
    /// The packet was not handed on: it is to be part of a count.
    pending: bool,
    /// The set that was in use when the agent read the packet; a program may have sent it while the other set was.
    set: u32,
    /// Packets of the flow that other CPUs sent.
    more: AggregateCount,
}

impl Aggregator {
    pub(super) fn new(sets: [MapSet; 2], state: MapData, handover: Arc<Handover>) -> io::Result<Aggregator> {
        let grace = GracePeriod::new(state.fd().as_fd())?;
        let AggregateState { active, .. } = bpf::get(state.fd().as_fd(), 0)?;
        Ok(Aggregator {
            sets,
            state,
            active: active & 1,
            handover,
            grace,
            firsts: HashMap::default(),
            counted: HashSet::default(),
        })
    }

    /// Takes an event of the ring. Returns a drop to hand on at once, if there is one.
    pub fn add(&mut self, event: &DropEvent) -> Option<AggregatedDrop> {
        self.handover.emitted().fetch_add(1, Ordering::AcqRel);
        let drop = AggregatedDrop::of_event(event);
        if event.key.kind() == NOT_AGGREGATED {
            return Some(drop);
        }
        let (set, pending) = (self.active, self.counted.contains(&event.key));
        match self.firsts.entry(event.key) {
            Entry::Vacant(entry) => {
                let hand_on = (!pending).then(|| drop.clone());
                entry.insert(FirstPacket { drop, pending, set, more: AggregateCount::default() });
                hand_on
            }
            Entry::Occupied(mut entry) if entry.get().set == set => {
                entry.get_mut().more.add(&count_of(event, &drop.packet));
                None
            }
            Entry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                let hand_on = (!pending).then(|| drop.clone());
                let first = FirstPacket { drop, pending, set, more: entry.more };
                match std::mem::replace(entry, first) {
                    // The packet from before the swap is handed on alone.
                    FirstPacket { drop, pending: true, .. } => Some(drop),
                    _ => hand_on,
                }
            }
        }
    }

    /// Makes the programs count in the other set of maps, and waits until no program uses the old set.
    pub fn swap(&mut self) -> io::Result<()> {
        self.active ^= 1;
        let state = AggregateState { active: self.active, full: 0 };
        bpf::set(self.state.fd().as_fd(), 0, &state)?;
        self.grace.wait(self.state.fd().as_fd())
    }

    /// Empties the set that the programs no longer use. The caller must first have read every event that was sent while they used it.
    pub fn take(&mut self, each: impl FnMut(AggregatedDrop)) -> io::Result<()> {
        self.empty(self.active ^ 1, each)
    }

    /// Empties both sets, when no program runs any more.
    pub fn take_last(&mut self, mut each: impl FnMut(AggregatedDrop)) -> io::Result<()> {
        let other = self.empty(self.active ^ 1, &mut each);
        other.and(self.empty(self.active, each))
    }

    /// Takes the packets that are pending, when the next agent will read their counts.
    pub fn take_pending(&mut self) -> Vec<AggregatedDrop> {
        let firsts = std::mem::take(&mut self.firsts).into_iter();
        firsts.filter_map(|(key, mut first)| first.take_uncounted(&key)).collect()
    }

    fn empty(&mut self, set: u32, mut each: impl FnMut(AggregatedDrop)) -> io::Result<()> {
        let (firsts, handover) = (&mut self.firsts, &self.handover);
        let mut counted = HashSet::default();
        let maps = &self.sets[set as usize & 1];
        let mut report = |key: &AggregateKey, count: &AggregateCount| {
            let drop = match firsts.get_mut(key) {
                Some(first) => first.take(key, *count),
                // An earlier agent read the first packet.
                None => from_key(key, count),
            };
            counted.insert(*key);
            each(drop);
        };
        if let Err(error) = maps.clear_bitmap() {
            tracing::debug!(%error, "the bitmap of counted flows is not cleared: new flows cost a look-up more");
        }
        // Several CPUs may have counted a flow, and the shared maps too.
        let mut of_cpus: HashMap<AggregateKey, AggregateCount, RandomState> = HashMap::default();
        let mut result = maps.slots.take(|key, count| {
            if count.count > 0 {
                of_cpus.entry(*key).or_default().add(count);
            }
        });
        handover.aggregated().fetch_add(of_cpus.values().map(|count| count.count).sum(), Ordering::AcqRel);
        for map in &maps.shared {
            let taken = bpf::take_all(map.fd().as_fd(), |key: &AggregateKey, count: &AggregateCount| {
                handover.aggregated().fetch_add(count.count, Ordering::AcqRel);
                let mut count = *count;
                if let Some(more) = of_cpus.remove(key) {
                    count.add(&more);
                }
                if count.count > 0 {
                    report(key, &count);
                }
            });
            result = result.and(taken);
        }
        of_cpus.iter().for_each(|(key, count)| report(key, count));
        firsts.retain(|key, first| {
            if first.set == set {
                if first.more.count > 0 {
                    counted.insert(*key);
                }
                first.take_uncounted(key).into_iter().for_each(&mut each);
            }
            first.set != set
        });
        // Frees the memory of a flood.
        if firsts.capacity() > 4 * firsts.len().max(1024) {
            firsts.shrink_to(2 * firsts.len());
        }
        self.counted = counted;
        result
    }
}

impl FirstPacket {
    /// Joins the packet with the count of its flow.
    fn take(&mut self, key: &AggregateKey, mut count: AggregateCount) -> AggregatedDrop {
        count.add(&std::mem::take(&mut self.more));
        join(self.drop.clone(), std::mem::take(&mut self.pending), key, &count)
    }

    /// The drop to hand on for a flow without a count of the kernel: the pending packet and packets that other CPUs sent.
    fn take_uncounted(&mut self, key: &AggregateKey) -> Option<AggregatedDrop> {
        match (self.pending, self.more.count) {
            (false, 0) => None,
            (true, 0) => Some(self.drop.clone()),
            _ => Some(self.take(key, AggregateCount::default())),
        }
    }
}

/// The count of one packet.
fn count_of(event: &DropEvent, packet: &Result<Packet, PacketError>) -> AggregateCount {
    let (bytes, segments) = packet.as_ref().map_or((event.len, 1), |packet| (packet.length, packet.segments));
    AggregateCount {
        count: 1,
        bytes: u64::from(bytes),
        more_segments: u64::from(segments) - 1,
        first: event.time,
        last: event.time,
    }
}

fn from_key(key: &AggregateKey, count: &AggregateCount) -> AggregatedDrop {
    let packet = from_key::packet(key, count);
    let site = from_key::site(key, packet.conntrack.is_some());
    join(AggregatedDrop { site, packet: Ok(packet), packet_count: PacketCount::ONE }, false, key, count)
}

/// Adds a count to a drop. `with_first`: the drop's packet is one more than those counted, and not only their example.
fn join(mut drop: AggregatedDrop, with_first: bool, key: &AggregateKey, count: &AggregateCount) -> AggregatedDrop {
    let mut last = count.last;
    if let Ok(packet) = &mut drop.packet {
        last = if with_first { last.max(packet.time) } else { last };
        // Around a swap a counted packet may be earlier than the first packet.
        packet.time = if with_first { packet.time.min(count.first) } else { count.first };
    }
    drop.packet_count = PacketCount {
        first: with_first,
        count: count.count,
        bytes: count.bytes,
        segments: count.count + count.more_segments,
        last,
        granularity: match key.kind() {
            kind if kind & WIDE != 0 => Granularity::AnyPorts,
            kind if kind & COARSE != 0 => Granularity::AnySourcePort,
            _ => Granularity::Flow,
        },
    };
    drop
}
