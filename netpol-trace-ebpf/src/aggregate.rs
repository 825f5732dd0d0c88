//! Repeated packets: the program sends the first packet of a flow and counts later ones until the agent empties the maps. A flood
//! costs map updates, not wake-ups. The maps are described in `netpol_trace_common::aggregate`.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use netpol_trace_common::PerCpu;
use netpol_trace_common::aggregate::{
    self, AggregateCount, AggregateKey, AggregateState, BITMAP_WORDS, FAST_SLOTS, FULL_COARSE, FULL_FLOWS, FastSlot,
    FlowBitmap, HandoverPage, INDEX_WORDS_PER_SLOT, MAX_COARSE, MAX_FLOWS, MAX_WIDE, WORDS, WORDS_V4, shift,
};

use crate::drop::{self, bpf_ktime};
use crate::emit::{self, field};
use crate::key::{Measure, word};

/// Slots and hash indexes of all CPUs, one CPU after the other. The loader sets their sizes.
#[map]
static FAST_0: Array<FastSlot> = Array::with_max_entries(FAST_SLOTS, BPF_F_MMAPABLE);
#[map]
static FAST_1: Array<FastSlot> = Array::with_max_entries(FAST_SLOTS, BPF_F_MMAPABLE);
#[map]
static INDEX_0: Array<u64> = Array::with_max_entries(FAST_SLOTS * INDEX_WORDS_PER_SLOT, BPF_F_MMAPABLE);
#[map]
static INDEX_1: Array<u64> = Array::with_max_entries(FAST_SLOTS * INDEX_WORDS_PER_SLOT, BPF_F_MMAPABLE);
#[map]
static BITMAP_0: Array<FlowBitmap> = Array::with_max_entries(1, 0);
#[map]
static BITMAP_1: Array<FlowBitmap> = Array::with_max_entries(1, 0);
#[map]
static FINE_0: HashMap<AggregateKey, AggregateCount> = HashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
static FINE_1: HashMap<AggregateKey, AggregateCount> = HashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
static COARSE_0: HashMap<AggregateKey, AggregateCount> = HashMap::with_max_entries(MAX_COARSE, 0);
#[map]
static COARSE_1: HashMap<AggregateKey, AggregateCount> = HashMap::with_max_entries(MAX_COARSE, 0);
#[map]
static WIDE_0: HashMap<AggregateKey, AggregateCount> = HashMap::with_max_entries(MAX_WIDE, 0);
#[map]
static WIDE_1: HashMap<AggregateKey, AggregateCount> = HashMap::with_max_entries(MAX_WIDE, 0);
#[map]
static AGGREGATE_STATE: Array<AggregateState> = Array::with_max_entries(1, 0);

/// Written by the agent only: it is here to be pinned with the other maps.
#[map]
static HANDOVER: Array<HandoverPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Initial value of a map entry. Static, because the stack has 512 bytes.
static ZERO_COUNT: AggregateCount = AggregateCount { count: 0, bytes: 0, more_segments: 0, first: 0, last: 0 };

/// What the program does with a packet.
pub enum Outcome {
    /// The packet was counted.
    Counted,
    /// The packet is to be sent.
    Send,
}

/// The set of maps in use, fixed for one run of the program: after a swap the agent waits for runs that use the old set to end.
pub struct ActiveMaps {
    second: bool,
    cpu: *mut PerCpu,
    state: *mut AggregateState,
    /// True if each CPU has slots of its own. False on kernels that can interrupt a run of the program with another run.
    fast: bool,
}

impl ActiveMaps {
    #[inline(always)]
    pub fn current(cpu: *mut PerCpu) -> Option<ActiveMaps> {
        let state = AGGREGATE_STATE.get_ptr_mut(0)?;
        // SAFETY: a live map value. Volatile: the agent changes it.
        let active = unsafe { core::ptr::read_volatile(&raw const (*state).active) };
        Some(ActiveMaps { second: active != 0, cpu, state, fast: field!(recursive) == 0 })
    }

    /// Counts a packet of a flow that has an entry. Otherwise leaves in `key` the finest key for which there may be room.
    #[inline(always)]
    pub fn count(&self, key: &mut AggregateKey, packet: &Measure) -> Outcome {
        let hash = hash(key);
        if self.fast
            && let Some(entry) = self.index_entry(hash)
        {
            // SAFETY: a CPU's own map value that no other run touches.
            let found = unsafe { *entry };
            if found == 0 {
                if self.has_room() {
                    return Outcome::Send;
                }
            } else if found >> 32 == hash
                && let Some(slot) = self.slot(found as u32)
                && self.has(slot, key)
            {
                self.add_alone(slot, packet);
                return Outcome::Counted;
            }
        }
        if self.may_be_in_map(hash)
            && let Some(count) = self.flow(key)
        {
            self.add(count, packet);
            return Outcome::Counted;
        }
        let full = self.full();
        if full & FULL_FLOWS != 0 {
            coarsen(key);
            if let Some(count) = self.coarse(key) {
                self.add(count, packet);
                return Outcome::Counted;
            }
        }
        if full & FULL_COARSE != 0 {
            widen(key);
            if let Some(count) = self.wide(key) {
                self.add(count, packet);
                return Outcome::Counted;
            }
        }
        Outcome::Send
    }

    /// Makes an entry for the packets that follow the one about to be sent, and leaves its key in `key`. Returns `Counted` if another
    /// CPU made the entry first: then this packet is counted there.
    #[inline(always)]
    pub fn open(&self, key: &mut AggregateKey, packet: &Measure) -> Outcome {
        let mut kind = key.kind();
        if kind & (aggregate::COARSE | aggregate::WIDE) == 0 {
            let hash = hash(key);
            if self.take_slot(hash, key) {
                return Outcome::Send;
            }
            if self.insert_flow(key) {
                self.set_bit(hash);
                return Outcome::Send;
            }
            if let Some(count) = self.flow(key) {
                self.set_bit(hash);
                self.add(count, packet);
                return Outcome::Counted;
            }
            self.set_full(FULL_FLOWS);
            coarsen(key);
            kind |= aggregate::COARSE;
        }
        if kind & aggregate::WIDE == 0 {
            if self.insert_coarse(key) {
                return Outcome::Send;
            }
            if let Some(count) = self.coarse(key) {
                self.add(count, packet);
                return Outcome::Counted;
            }
            self.set_full(FULL_FLOWS | FULL_COARSE);
            widen(key);
        }
        if self.insert_wide(key) {
            return Outcome::Send;
        }
        if let Some(count) = self.wide(key) {
            self.add(count, packet);
            return Outcome::Counted;
        }
        // No map has room: every packet of the flow is sent.
        key.words[3] &= !(0xff << shift::KIND);
        Outcome::Send
    }

    #[inline(always)]
    fn full(&self) -> u32 {
        // SAFETY: a live map value. Volatile: others change it.
        unsafe { core::ptr::read_volatile(&raw const (*self.state).full) }
    }

    #[inline(always)]
    fn set_full(&self, full: u32) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*self.state).full, full) };
    }

    /// False if the map of flows has no flow with this hash.
    #[inline(always)]
    fn may_be_in_map(&self, hash: u64) -> bool {
        // SAFETY: a word of a live map value. Volatile: others change it.
        self.bitmap_word(hash).is_none_or(|word| unsafe { core::ptr::read_volatile(word) } >> (hash & 63) & 1 == 1)
    }

    #[inline(always)]
    fn set_bit(&self, hash: u64) {
        if let Some(word) = self.bitmap_word(hash) {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(word, core::ptr::read_volatile(word) | 1 << (hash & 63)) };
        }
    }

    #[inline(always)]
    fn bitmap_word(&self, hash: u64) -> Option<*mut u64> {
        let bitmap = if self.second { BITMAP_1.get_ptr_mut(0) } else { BITMAP_0.get_ptr_mut(0) }?;
        // SAFETY: a live map value of that many words.
        Some(unsafe { (&raw mut (*bitmap).words).cast::<u64>().add((hash >> 6) as usize & (BITMAP_WORDS - 1)) })
    }

    /// The entry of this CPU's hash index for a flow with this hash; there is one such entry.
    #[inline(always)]
    fn index_entry(&self, hash: u64) -> Option<*mut u64> {
        let words = field!(slots) * INDEX_WORDS_PER_SLOT;
        let at = emit::number() * words + (hash as u32 & (words - 1));
        if self.second { INDEX_1.get_ptr_mut(at) } else { INDEX_0.get_ptr_mut(at) }
    }

    /// A slot of this CPU; `number` counts from 1.
    #[inline(always)]
    fn slot(&self, number: u32) -> Option<*mut FastSlot> {
        let at = (emit::number() * field!(slots)).wrapping_add(number).wrapping_sub(1);
        if self.second { FAST_1.get_ptr_mut(at) } else { FAST_0.get_ptr_mut(at) }
    }

    /// The number of slots that this CPU uses.
    #[inline(always)]
    fn flows(&self) -> *mut u64 {
        // SAFETY: a CPU's own map value; only the address is taken.
        unsafe { (&raw mut (*self.cpu).flows).cast::<u64>().add(usize::from(self.second)) }
    }

    #[inline(always)]
    fn has_room(&self) -> bool {
        let slots = u64::from(field!(slots));
        // SAFETY: as above.
        unsafe { *self.flows() < slots }
    }

    /// Puts a flow into a slot of this CPU. Returns false if there is no room.
    #[inline(always)]
    fn take_slot(&self, hash: u64, key: &AggregateKey) -> bool {
        if !self.fast || !self.has_room() {
            return false;
        }
        // SAFETY: a CPU's own map values that no other run touches.
        unsafe {
            let number = *self.flows() + 1;
            let (Some(entry), Some(slot)) = (self.index_entry(hash), self.slot(number as u32)) else { return false };
            if *entry != 0 {
                return false;
            }
            let mut i = 0;
            while i < WORDS {
                core::ptr::write_volatile(&raw mut (*slot).key.words[i], word(key, i));
                i += 1;
            }
            drop::words((&raw mut (*slot).count).cast(), [0u64; size_of::<AggregateCount>() / 8]);
            *self.flows() = number;
            *entry = hash << 32 | number;
        }
        true
    }

    #[inline(always)]
    fn has(&self, slot: *mut FastSlot, key: &AggregateKey) -> bool {
        // SAFETY: a CPU's own map value that no other run touches.
        let at = |i: usize| unsafe { (*slot).key.words[i] };
        let mut other = 0;
        let mut i = 0;
        while i < WORDS_V4 {
            other |= at(i) ^ word(key, i);
            i += 1;
        }
        if other != 0 {
            return false;
        }
        if !key.is_v4() {
            while i < WORDS {
                other |= at(i) ^ word(key, i);
                i += 1;
            }
        }
        other == 0
    }

    /// Counts a packet in a slot of this CPU.
    #[inline(always)]
    fn add_alone(&self, slot: *mut FastSlot, packet: &Measure) {
        // SAFETY: a CPU's own map value that no other run touches.
        unsafe {
            let count = &raw mut (*slot).count;
            let now = clock(self.cpu);
            if (*count).first == 0 {
                (*count).first = now;
            }
            (*count).last = now;
            (*count).bytes += u64::from(packet.bytes);
            (*count).more_segments += u64::from(packet.segments) - 1;
            (*count).count += 1;
        }
    }

    #[inline(always)]
    fn add(&self, count: *mut AggregateCount, packet: &Measure) {
        // SAFETY: a live map value that CPUs share: the adds are atomic, and of two concurrent stores of a time either is right.
        unsafe {
            let now = clock(self.cpu);
            if (*count).first == 0 {
                (*count).first = now;
            }
            (*count).last = now;
            add(&raw mut (*count).bytes, u64::from(packet.bytes));
            if packet.segments > 1 {
                add(&raw mut (*count).more_segments, u64::from(packet.segments) - 1);
            }
            add(&raw mut (*count).count, 1);
        }
    }
}

/// Look-up and insertion in the maps in use. Insertion takes the value by reference: by value it would be on the stack.
macro_rules! maps {
    ($($get:ident, $insert:ident: $first:ident, $second:ident;)*) => {
        impl ActiveMaps {$(
            #[inline(always)]
            fn $get(&self, key: &AggregateKey) -> Option<*mut AggregateCount> {
                if self.second { $second.get_ptr_mut(key) } else { $first.get_ptr_mut(key) }
            }

            #[inline(always)]
            fn $insert(&self, key: &AggregateKey) -> bool {
                let flags = u64::from(BPF_NOEXIST);
                if self.second { $second.insert(key, &ZERO_COUNT, flags) } else { $first.insert(key, &ZERO_COUNT, flags) }.is_ok()
            }
        )*}
    };
}

maps! {
    flow, insert_flow: FINE_0, FINE_1;
    coarse, insert_coarse: COARSE_0, COARSE_1;
    wide, insert_wide: WIDE_0, WIDE_1;
}

/// Hash of a flow's key: 32 bits, each of which depends on every field that differs between flows.
#[inline(always)]
fn hash(key: &AggregateKey) -> u64 {
    let [three, four, five] = [word(key, 3), word(key, 4), word(key, 5)];
    let [six, seven, eight] = [word(key, 6), word(key, 7), word(key, 8)];
    let mixed = (three ^ four.rotate_left(24) ^ five ^ seven).wrapping_add(six.rotate_left(8) ^ eight);
    let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// Removes the source ports from the key.
#[inline(always)]
fn coarsen(key: &mut AggregateKey) {
    key.words[4] &= 0xffff_0000_ffff_0000;
    key.words[3] |= u64::from(aggregate::COARSE) << shift::KIND;
}

/// Removes all ports from the key.
#[inline(always)]
fn widen(key: &mut AggregateKey) {
    key.words[4] = 0;
    key.words[3] |= u64::from(aggregate::COARSE | aggregate::WIDE) << shift::KIND;
}

/// SAFETY: `counter` is a field of a live map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, value: u64) {
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, value) };
}

/// The time, rounded to the kernel's tick: precise enough for a count. Reading the clock itself takes 40 ns.
#[inline(always)]
fn clock(cpu: *mut PerCpu) -> u64 {
    // SAFETY: a helper without arguments, and a CPU's own map value.
    unsafe {
        let tick = bpf_jiffies64();
        if (*cpu).tick != tick {
            (*cpu).tick = tick;
            (*cpu).time = bpf_ktime();
        }
        (*cpu).time
    }
}
