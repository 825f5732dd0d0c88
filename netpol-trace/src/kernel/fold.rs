//! The agent's end of the folds: remembers the first packet of each flow, takes the counts of a window out of the kernel, and
//! makes one of both.
//!
//! The first packet of a flow goes on at once. A flow that was counted in the window before is told once a window: its first
//! packet waits here for the count.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::MapData;
// Keys are long; seeded for each run, and no more of them than the kernel's maps hold.
use foldhash::fast::RandomState;
use netpol_trace_common::fold::{
    COARSE, FRAGMENT, FastSlot, Fold, FoldKey, FoldState, KNOWN_WORDS, Known, NOT_FOLDED, PLACES, WIDE,
};
use netpol_trace_common::{CT_REPLY_OFFSET, CT_STATUS_OFFSET, CT_WORDS, DropEvent, HEAD_LEN, PerCpu, flags};

use super::bpf::{self, Grace};
use super::carry::Carry;
use super::mapping::Mapping;
use crate::model::packet::{ICMP, ICMPV6, Repeats, Sameness};
use crate::packet;

/// A set of maps, from fine to coarse.
pub(super) struct Set {
    pub(super) own: Own,
    /// Which flows may be in the map of flows.
    pub(super) known: MapData,
    /// Flows, what found no room there, and what found none there either.
    pub(super) shared: [MapData; 3],
}

/// Flows that each CPU counts by itself. Mapped only while they are taken: megabytes that would count as the agent's.
pub(super) struct Own {
    /// [`FastSlot`]s: those of the first CPU, of the second, and so on.
    pub(super) slots: MapData,
    pub(super) slots_of_each: usize,
    /// Words that lead from a flow's hash to its slot.
    pub(super) places: MapData,
    /// How many slots each CPU has in use.
    pub(super) per_cpu: Arc<Mapping<PerCpu>>,
    /// Which set this is: 0 or 1.
    pub(super) which: usize,
}

impl Own {
    /// Takes what each CPU counted, when none does any more. A flow may come several times.
    fn take(&self, mut each: impl FnMut(&FoldKey, &Fold)) -> io::Result<()> {
        // SAFETY: only the address is taken.
        let flows = |entry: *mut PerCpu| unsafe { (&raw mut (*entry).flows).cast::<u64>().add(self.which & 1) };
        let in_use: Vec<_> = self.per_cpu.words(flows).collect();
        if in_use.iter().all(|flows| flows.load(Ordering::Acquire) == 0) {
            return Ok(());
        }
        let slots = Mapping::<FastSlot>::new(&self.slots, in_use.len() * self.slots_of_each)?;
        let places_of_each = self.slots_of_each * PLACES as usize;
        let places = Mapping::<u64>::new(&self.places, in_use.len() * places_of_each)?;
        for (cpu, flows) in in_use.iter().enumerate() {
            let count = usize::try_from(flows.load(Ordering::Acquire)).unwrap_or(usize::MAX).min(self.slots_of_each);
            for at in 0..count {
                let FastSlot { key, fold } = slot(&slots, cpu * self.slots_of_each + at);
                each(&key, &fold);
            }
            if count > 0 {
                let of_this = cpu * places_of_each..(cpu + 1) * places_of_each;
                of_this.flat_map(|at| places.value(at)).for_each(|place| place.store(0, Ordering::Release));
                flows.store(0, Ordering::Release);
            }
        }
        Ok(())
    }
}

fn slot(slots: &Mapping<FastSlot>, at: usize) -> FastSlot {
    let mut words = slots.value(at).map(|word| word.load(Ordering::Acquire));
    let mut next = || words.next().unwrap_or_default();
    let mut slot = FastSlot::default();
    slot.key.words.fill_with(&mut next);
    let Fold { count, bytes, more_segments, first, last } = &mut slot.fold;
    for word in [count, bytes, more_segments, first, last] {
        *word = next();
    }
    slot
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
    /// Others that were sent of this flow, by other CPUs.
    more: Fold,
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

    /// Takes an event of the ring, and gives it back unless it is told with a count.
    pub fn first(&mut self, event: DropEvent) -> Option<Told> {
        self.carry.emitted().fetch_add(1, Ordering::AcqRel);
        let one = |event| Some(Told { event, repeats: Repeats::ONE });
        if event.key.kind() == NOT_FOLDED {
            return one(event);
        }
        let (set, waits) = (self.active, self.counted.contains(&event.key));
        match self.firsts.entry(event.key) {
            Entry::Vacant(entry) => {
                entry.insert(First { event, waits, set, more: Fold::default() });
                if waits { None } else { one(event) }
            }
            Entry::Occupied(mut entry) if entry.get().set == set => {
                entry.get_mut().more.add(&fold_of(&event));
                None
            }
            Entry::Occupied(mut entry) => {
                // One that waits already, from before the maps were turned, goes on by itself.
                let before = entry.get_mut();
                let first = First { event, waits, set, more: before.more };
                match std::mem::replace(before, first) {
                    First { event, waits: true, .. } => one(event),
                    _ if waits => None,
                    _ => one(event),
                }
            }
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

    /// What waits for a count, when nobody will come back for it.
    pub fn take_waiting(&mut self) -> Vec<Told> {
        let firsts = std::mem::take(&mut self.firsts).into_iter();
        firsts.filter_map(|(key, First { event, waits, more, .. })| alone(event, waits, &key, &more)).collect()
    }

    fn empty(&mut self, set: u32, mut each: impl FnMut(Told)) -> io::Result<()> {
        let (firsts, carry) = (&mut self.firsts, &self.carry);
        let mut counted = HashSet::default();
        let from = &mut self.sets[set as usize & 1];
        let mut tell = |key: &FoldKey, fold: &Fold| {
            let told = match firsts.get_mut(key) {
                Some(first) => {
                    let mut fold = *fold;
                    fold.add(&std::mem::take(&mut first.more));
                    told(first.event, std::mem::take(&mut first.waits), key, &fold)
                }
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
        // As others may have counted the same flows.
        let mut own: HashMap<FoldKey, Fold, RandomState> = HashMap::default();
        let mut result = from.own.take(|key, fold| {
            if fold.count > 0 {
                own.entry(*key).or_default().add(fold);
            }
        });
        carry.aggregated().fetch_add(own.values().map(|fold| fold.count).sum(), Ordering::AcqRel);
        for map in &from.shared {
            let taken = bpf::take_all(map.fd().as_fd(), |key: &FoldKey, fold: &Fold| {
                carry.aggregated().fetch_add(fold.count, Ordering::AcqRel);
                let mut fold = *fold;
                if let Some(more) = own.remove(key) {
                    fold.add(&more);
                }
                if fold.count > 0 {
                    tell(key, &fold);
                }
            });
            result = result.and(taken);
        }
        own.iter().for_each(|(key, fold)| tell(key, fold));
        firsts.retain(|key, first| {
            if first.set == set
                && let Some(told) = alone(first.event, first.waits, key, &first.more)
            {
                if first.more.count > 0 {
                    counted.insert(*key);
                }
                each(told);
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

/// What is told of a flow without a count of the kernel's: a first packet that waited for one, and others' first packets.
fn alone(event: DropEvent, waits: bool, key: &FoldKey, more: &Fold) -> Option<Told> {
    match (waits, more.count) {
        (false, 0) => None,
        (true, 0) => Some(Told { event, repeats: Repeats::ONE }),
        _ => Some(told(event, waits, key, more)),
    }
}

/// The count that an event makes with others.
fn fold_of(event: &DropEvent) -> Fold {
    let (bytes, segments) = packet::decode(event).map_or((event.len, 1), |packet| (packet.length, packet.segments));
    Fold {
        count: 1,
        bytes: u64::from(bytes),
        more_segments: u64::from(segments) - 1,
        first: event.time,
        last: event.time,
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
