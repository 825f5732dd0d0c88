//! The agent's end of the folds: remembers the first packet of each flow, takes the counts of a window out of the kernel, and
//! makes one of both.
//!
//! The first packet of a flow goes on at once. A flow that was counted in the window before is told once a window: its first
//! packet waits here for the count.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{Array, MapData, MapError};
// Keys are long; seeded for each run, and no more of them than the kernel's maps hold.
use foldhash::fast::RandomState;
use netpol_trace_common::fold::{
    COARSE, FAST_SLOTS, FRAGMENT, Fast, FastSlot, Fold, FoldKey, FoldState, KNOWN_WORDS, Known, NOT_FOLDED, WIDE, WORDS,
};
use netpol_trace_common::{CT_REPLY_OFFSET, CT_STATUS_OFFSET, CT_WORDS, DropEvent, HEAD_LEN, flags};

use super::attach::pod;
use super::bpf::{self, Grace};
use super::carry::Carry;
use crate::packet::{ICMP, ICMPV6, Repeats, Sameness};

pod! {
    /// [`Fast`] as aya reads it from a map.
    FastPod(Fast);
}

/// A set of maps, from fine to coarse.
pub(super) struct Set {
    /// Flows that each CPU counts by itself; the map of flows has them too.
    pub(super) fast: Array<MapData, FastPod>,
    /// Which flows may be in the map of flows.
    pub(super) known: MapData,
    /// Flows, what found no room there, and what found none there either.
    pub(super) shared: [MapData; 3],
}

impl Set {
    /// Takes what each CPU counted by itself, when none does any more, and adds it up.
    fn take_fast(&mut self, taken: &mut HashMap<FoldKey, Fold>) -> Result<(), MapError> {
        const EMPTY: Fast = Fast {
            slots: [FastSlot {
                key: FoldKey { words: [0; WORDS] },
                fold: Fold { count: 0, bytes: 0, more_segments: 0, first: 0, last: 0 },
            }; FAST_SLOTS],
        };
        for cpu in 0..self.fast.len() {
            let FastPod(fast) = self.fast.get(&cpu, 0)?;
            let mut used = fast.slots.iter().filter(|slot| slot.fold.count > 0).peekable();
            if used.peek().is_some() {
                self.fast.set(cpu, FastPod(EMPTY), 0)?;
            }
            used.for_each(|slot| taken.entry(slot.key).or_default().add(&slot.fold));
        }
        Ok(())
    }
}

pub struct Folds {
    sets: [Set; 2],
    state: MapData,
    active: u32,
    grace: Grace,
    carry: Arc<Carry>,
    /// First packets of the window being counted.
    firsts: HashMap<FoldKey, First, RandomState>,
    /// What was counted in the window before.
    counted: HashSet<FoldKey, RandomState>,
}

#[derive(Debug)]
struct First {
    event: DropEvent,
    /// It has not gone on.
    waits: bool,
    /// It was read while this set of maps was in use; it may have been sent while the other one was.
    set: u32,
}

/// A drop as the kernel told it: an event, or a count.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    pub event: DropEvent,
    pub repeats: Repeats,
}

impl Folds {
    pub(super) fn new(sets: [Set; 2], state: MapData, carry: Arc<Carry>) -> io::Result<Folds> {
        let grace = Grace::new(state.fd().as_fd())?;
        let FoldState { active, .. } = bpf::get(state.fd().as_fd(), 0)?;
        Ok(Folds {
            sets,
            state,
            active: active & 1,
            carry,
            grace,
            firsts: HashMap::default(),
            counted: HashSet::default(),
        })
    }

    /// Takes an event of the ring, and gives it back unless it waits for its count.
    pub fn first(&mut self, event: DropEvent) -> Option<Told> {
        self.carry.emitted().fetch_add(1, Ordering::AcqRel);
        if event.key.kind() == NOT_FOLDED {
            return Some(Told { event, repeats: Repeats::ONE });
        }
        let waits = self.counted.contains(&event.key);
        // One that waits already, from before the maps were turned, goes on by itself.
        let before = self.firsts.insert(event.key, First { event, waits, set: self.active });
        match before {
            Some(First { event, waits: true, .. }) => Some(Told { event, repeats: Repeats::ONE }),
            _ if waits => None,
            _ => Some(Told { event, repeats: Repeats::ONE }),
        }
    }

    /// Lets the programs count in the other set of maps, and waits until none is left that may still count in this one.
    pub fn turn(&mut self) -> io::Result<()> {
        self.active ^= 1;
        let state = FoldState { active: self.active, full: 0 };
        bpf::set(self.state.fd().as_fd(), 0, &state)?;
        self.grace.wait(self.state.fd().as_fd())
    }

    /// Empties the maps that were turned away from. Before, every event must have been read that was sent while they were in use.
    pub fn take(&mut self, each: impl FnMut(Told)) -> io::Result<()> {
        self.empty(self.active ^ 1, each)
    }

    /// Empties the maps in use, when no program runs any more.
    pub fn take_last(&mut self, mut each: impl FnMut(Told)) -> io::Result<()> {
        let other = self.empty(self.active ^ 1, &mut each);
        other.and(self.empty(self.active, each))
    }

    /// First packets that wait for a count, when nobody will come back for it.
    pub fn take_waiting(&mut self) -> Vec<Told> {
        let waiting = std::mem::take(&mut self.firsts).into_values().filter(|first| first.waits);
        waiting.map(|First { event, .. }| Told { event, repeats: Repeats::ONE }).collect()
    }

    fn empty(&mut self, set: u32, mut each: impl FnMut(Told)) -> io::Result<()> {
        let (firsts, carry) = (&mut self.firsts, &self.carry);
        let mut counted = HashSet::default();
        let from = &mut self.sets[set as usize & 1];
        let mut tell = |key: &FoldKey, fold: &Fold| {
            if fold.count == 0 {
                return;
            }
            carry.folded().fetch_add(fold.count, Ordering::AcqRel);
            let told = match firsts.get_mut(key) {
                Some(first) => told(first.event, std::mem::take(&mut first.waits), key, fold),
                // The agent that read the event is gone.
                None => told(event_of(key, fold), false, key, fold),
            };
            counted.insert(*key);
            each(told);
        };
        // A bit too many costs a look-up.
        const NONE: Known = Known { words: [0; KNOWN_WORDS] };
        if let Err(error) = bpf::set(from.known.fd().as_fd(), 0, &NONE) {
            tracing::debug!(%error, "new flows are looked up where they can't be");
        }
        let mut fast = HashMap::new();
        let mut result = from.take_fast(&mut fast).map_err(io::Error::other);
        for map in &from.shared {
            let taken = bpf::take_all(map.fd().as_fd(), |key: &FoldKey, fold: &Fold| {
                let mut fold = *fold;
                if let Some(more) = fast.remove(key) {
                    fold.add(&more);
                }
                tell(key, &fold);
            });
            result = result.and(taken);
        }
        // Where the map of flows could not be read.
        fast.iter().for_each(|(key, fold)| tell(key, fold));
        firsts.retain(|_, first| {
            if first.set == set && first.waits {
                each(Told { event: first.event, repeats: Repeats::ONE });
            }
            first.set != set
        });
        // What a flood took is given back.
        if firsts.capacity() > 4 * firsts.len().max(1024) {
            firsts.shrink_to(2 * firsts.len());
        }
        self.counted = counted;
        result
    }
}

fn told(mut event: DropEvent, with_first: bool, key: &FoldKey, fold: &Fold) -> Told {
    let last = if with_first { fold.last.max(event.time) } else { fold.last };
    // In use when the maps were turned: the first packet may be of the set that took over.
    event.time = if with_first { event.time.min(fold.first) } else { fold.first };
    let repeats = Repeats {
        first: with_first,
        count: fold.count,
        bytes: fold.bytes,
        segments: fold.count + fold.more_segments,
        last,
        same: match key.kind() {
            kind if kind & WIDE != 0 => Sameness::AnyPorts,
            kind if kind & COARSE != 0 => Sameness::AnySourcePort,
            _ => Sameness::Flow,
        },
    };
    Told { event, repeats }
}

/// An event that says what the key says, for counts whose first packet somebody else read.
fn event_of(key: &FoldKey, fold: &Fold) -> DropEvent {
    let mut head = [0u8; HEAD_LEN];
    let v4 = key.is_v4();
    let length = u16::try_from(fold.bytes / fold.count.max(1)).unwrap_or(u16::MAX);
    let [source, destination] = key.addresses();
    let ports = key.ports();
    let transport = if v4 {
        head[0] = 0x45;
        head[2..4].copy_from_slice(&length.to_be_bytes());
        head[7] = u8::from(key.kind() & FRAGMENT != 0);
        head[9] = key.protocol();
        head[12..16].copy_from_slice(&source[..4]);
        head[16..20].copy_from_slice(&destination[..4]);
        20
    } else {
        head[0] = 0x60;
        head[4..6].copy_from_slice(&length.saturating_sub(40).to_be_bytes());
        head[6] = key.protocol();
        head[8..24].copy_from_slice(&source);
        head[24..40].copy_from_slice(&destination);
        40
    };
    head[transport..transport + 2].copy_from_slice(&ports[0].to_ne_bytes());
    let second = transport + if matches!(key.protocol(), ICMP | ICMPV6) { 4 } else { 2 };
    head[second..second + 2].copy_from_slice(&ports[1].to_ne_bytes());
    head[transport + 12] = 0x50;
    head[transport + 13] = key.tcp_flags();
    let conntrack = conntrack_of(key);
    DropEvent {
        time: fold.first,
        location: key.location(),
        dst_input: 0,
        conntrack: conntrack.unwrap_or_default(),
        reason: key.reason(),
        len: u32::from(length),
        data_offset: 0,
        tail: transport as u32 + 20,
        network_header: 0,
        mac_header: 0,
        transport_header: transport as u16,
        protocol: if v4 { 0x0800_u16 } else { 0x86dd }.to_be(),
        ifindex: key.ifindex(),
        iif: key.iif(),
        out_ifindex: 0,
        netns: key.netns(),
        mark: 0,
        gso_segs: 0,
        gso_size: 0,
        ctinfo: key.ctinfo(),
        flags: key.flags() | if conntrack.is_some() { flags::CONNTRACK } else { 0 },
        pad: [0; 6],
        key: *key,
        device: [0; 2],
        head,
    }
}

/// Conntrack's entry as far as the key tells it: the connection's own direction, translated to what the packet has.
fn conntrack_of(key: &FoldKey) -> Option<[u64; CT_WORDS]> {
    /// First of the reply values of `enum ip_conntrack_info`.
    const REPLY: u8 = 3;
    const STATUS_DST_NAT: u64 = 0x20;
    let [client, asked] = key.original_addresses();
    if key.ctinfo() >= REPLY || client == [0; 16] {
        return None;
    }
    let l3num: u16 = if key.is_v4() { 2 } else { 10 };
    let mut copy = [0u8; CT_WORDS * 8];
    let mut tuple = |at: usize, source: ([u8; 16], u16), destination: ([u8; 16], u16), direction: u8| {
        copy[at..at + 16].copy_from_slice(&source.0);
        copy[at + 16..at + 18].copy_from_slice(&source.1.to_ne_bytes());
        copy[at + 18..at + 20].copy_from_slice(&l3num.to_ne_bytes());
        copy[at + 20..at + 36].copy_from_slice(&destination.0);
        copy[at + 36..at + 38].copy_from_slice(&destination.1.to_ne_bytes());
        copy[at + 38] = key.protocol();
        copy[at + 39] = direction;
    };
    let ports = key.original_ports();
    let (client, asked) = ((client, ports[0]), (asked, ports[1]));
    let answers = (key.addresses()[1], key.ports()[1]);
    tuple(0, client, asked, 0);
    tuple(CT_REPLY_OFFSET, answers, client, 1);
    let status = if asked == answers { 0 } else { STATUS_DST_NAT };
    copy[CT_STATUS_OFFSET..].copy_from_slice(&status.to_ne_bytes());
    let mut words = [0; CT_WORDS];
    for (word, octets) in words.iter_mut().zip(copy.chunks_exact(8)) {
        *word = u64::from_ne_bytes(octets.try_into().ok()?);
    }
    Some(words)
}
