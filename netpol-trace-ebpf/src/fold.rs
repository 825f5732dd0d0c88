//! Repeated packets: the first of a flow is sent, later ones are counted until the agent empties the maps. A flood costs map
//! updates, not wake-ups.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use netpol_trace_common::PerCpu;
use netpol_trace_common::fold::{
    self, Carry, FAST_SLOTS, FULL_COARSE, FULL_FLOWS, FastSlot, Fold, FoldKey, FoldState, KNOWN_WORDS, Known,
    MAX_COARSE, MAX_FLOWS, MAX_WIDE, PLACES, WORDS, WORDS_V4, shift,
};

use crate::drop::{self, bpf_ktime};
use crate::emit::{self, field};
use crate::key::{Measure, word};

/// The first CPU's slots, then the second's, and so on: the loader sets the size of these, and of the places where
/// hashes find them.
#[map]
static FAST_0: Array<FastSlot> = Array::with_max_entries(FAST_SLOTS, BPF_F_MMAPABLE);
#[map]
static FAST_1: Array<FastSlot> = Array::with_max_entries(FAST_SLOTS, BPF_F_MMAPABLE);
#[map]
static PLACES_0: Array<u64> = Array::with_max_entries(FAST_SLOTS * PLACES, BPF_F_MMAPABLE);
#[map]
static PLACES_1: Array<u64> = Array::with_max_entries(FAST_SLOTS * PLACES, BPF_F_MMAPABLE);
#[map]
static KNOWN_0: Array<Known> = Array::with_max_entries(1, 0);
#[map]
static KNOWN_1: Array<Known> = Array::with_max_entries(1, 0);
#[map]
static FOLDS_0: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
static FOLDS_1: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
static COARSE_0: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_COARSE, 0);
#[map]
static COARSE_1: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_COARSE, 0);
#[map]
static WIDE_0: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_WIDE, 0);
#[map]
static WIDE_1: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_WIDE, 0);
#[map]
static FOLD_STATE: Array<FoldState> = Array::with_max_entries(1, 0);

/// The agent's own: kept here to be pinned with the rest.
#[map]
static CARRY: Array<Carry> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Not on the stack, which is short.
static NEW: Fold = Fold { count: 0, bytes: 0, more_segments: 0, first: 0, last: 0 };

/// What becomes of a packet.
pub enum Outcome {
    /// Counted: nothing more to do.
    Counted,
    /// To be sent; whether its like will be counted depends on [`Place::claim`].
    Send,
}

/// The maps in use, for one run of the program: a later look might see the others, and the agent waits only for this one.
pub struct Place {
    second: bool,
    cpu: *mut PerCpu,
    state: *mut FoldState,
    /// Whether this CPU counts flows by itself: not on kernels that run the program in the middle of another run.
    fast: bool,
}

impl Place {
    #[inline(always)]
    pub fn now(cpu: *mut PerCpu) -> Option<Place> {
        let state = FOLD_STATE.get_ptr_mut(0)?;
        // SAFETY: a live map value. Volatile: the agent changes it.
        let active = unsafe { core::ptr::read_volatile(&raw const (*state).active) };
        Some(Place { second: active != 0, cpu, state, fast: field!(recursive) == 0 })
    }

    /// Counts a packet whose like was sent before. Else leaves in `key` where there may be room for its like.
    #[inline(always)]
    pub fn count(&self, key: &mut FoldKey, packet: &Measure) -> Outcome {
        let hash = hash(key);
        if self.fast
            && let Some(place) = self.place(hash)
        {
            // SAFETY: a CPU's own map value that no other run touches.
            let found = unsafe { *place };
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
        if self.is_known(hash)
            && let Some(fold) = self.flow(key)
        {
            self.add(fold, packet);
            return Outcome::Counted;
        }
        let full = self.full();
        if full & FULL_FLOWS != 0 {
            coarsen(key);
            if let Some(fold) = self.coarse(key) {
                self.add(fold, packet);
                return Outcome::Counted;
            }
        }
        if full & FULL_COARSE != 0 {
            widen(key);
            if let Some(fold) = self.wide(key) {
                self.add(fold, packet);
                return Outcome::Counted;
            }
        }
        Outcome::Send
    }

    /// Makes room for the packets that follow the one about to be sent, and leaves in `key` under which they will be found.
    /// `Counted`: another CPU was first, and this packet is counted there.
    #[inline(always)]
    pub fn claim(&self, key: &mut FoldKey, packet: &Measure) -> Outcome {
        let mut kind = key.kind();
        if kind & (fold::COARSE | fold::WIDE) == 0 {
            let hash = hash(key);
            if self.take_slot(hash, key) {
                return Outcome::Send;
            }
            if self.insert_flow(key) {
                self.set_known(hash);
                return Outcome::Send;
            }
            if let Some(fold) = self.flow(key) {
                self.set_known(hash);
                self.add(fold, packet);
                return Outcome::Counted;
            }
            self.set_full(FULL_FLOWS);
            coarsen(key);
            kind |= fold::COARSE;
        }
        if kind & fold::WIDE == 0 {
            if self.insert_coarse(key) {
                return Outcome::Send;
            }
            if let Some(fold) = self.coarse(key) {
                self.add(fold, packet);
                return Outcome::Counted;
            }
            self.set_full(FULL_FLOWS | FULL_COARSE);
            widen(key);
        }
        if self.insert_wide(key) {
            return Outcome::Send;
        }
        if let Some(fold) = self.wide(key) {
            self.add(fold, packet);
            return Outcome::Counted;
        }
        // No room at all: each is sent by itself.
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

    /// Whether the map of flows may have a flow of this hash.
    #[inline(always)]
    fn is_known(&self, hash: u64) -> bool {
        // SAFETY: a word of a live map value. Volatile: others change it.
        self.known(hash).is_none_or(|word| unsafe { core::ptr::read_volatile(word) } >> (hash & 63) & 1 == 1)
    }

    #[inline(always)]
    fn set_known(&self, hash: u64) {
        if let Some(word) = self.known(hash) {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(word, core::ptr::read_volatile(word) | 1 << (hash & 63)) };
        }
    }

    #[inline(always)]
    fn known(&self, hash: u64) -> Option<*mut u64> {
        let known = if self.second { KNOWN_1.get_ptr_mut(0) } else { KNOWN_0.get_ptr_mut(0) }?;
        // SAFETY: a live map value of that many words.
        Some(unsafe { (&raw mut (*known).words).cast::<u64>().add((hash >> 6) as usize & (KNOWN_WORDS - 1)) })
    }

    /// The only place that a flow of this hash may have on this CPU.
    #[inline(always)]
    fn place(&self, hash: u64) -> Option<*mut u64> {
        let places = field!(slots) * PLACES;
        let at = emit::number() * places + (hash as u32 & (places - 1));
        if self.second { PLACES_1.get_ptr_mut(at) } else { PLACES_0.get_ptr_mut(at) }
    }

    /// One of this CPU's slots, from 1 on.
    #[inline(always)]
    fn slot(&self, number: u32) -> Option<*mut FastSlot> {
        let at = (emit::number() * field!(slots)).wrapping_add(number).wrapping_sub(1);
        if self.second { FAST_1.get_ptr_mut(at) } else { FAST_0.get_ptr_mut(at) }
    }

    /// How many slots this CPU has taken.
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

    /// Begins a flow of this CPU's own, where there is room.
    #[inline(always)]
    fn take_slot(&self, hash: u64, key: &FoldKey) -> bool {
        if !self.fast || !self.has_room() {
            return false;
        }
        // SAFETY: a CPU's own map values that no other run touches.
        unsafe {
            let number = *self.flows() + 1;
            let (Some(place), Some(slot)) = (self.place(hash), self.slot(number as u32)) else { return false };
            if *place != 0 {
                return false;
            }
            let mut i = 0;
            while i < WORDS {
                core::ptr::write_volatile(&raw mut (*slot).key.words[i], word(key, i));
                i += 1;
            }
            drop::words((&raw mut (*slot).fold).cast(), [0u64; size_of::<Fold>() / 8]);
            *self.flows() = number;
            *place = hash << 32 | number;
        }
        true
    }

    #[inline(always)]
    fn has(&self, slot: *mut FastSlot, key: &FoldKey) -> bool {
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

    /// Counts where nobody else does.
    #[inline(always)]
    fn add_alone(&self, slot: *mut FastSlot, packet: &Measure) {
        // SAFETY: a CPU's own map value that no other run touches.
        unsafe {
            let fold = &raw mut (*slot).fold;
            let now = clock(self.cpu);
            if (*fold).first == 0 {
                (*fold).first = now;
            }
            (*fold).last = now;
            (*fold).bytes += u64::from(packet.bytes);
            (*fold).more_segments += u64::from(packet.segments) - 1;
            (*fold).count += 1;
        }
    }

    #[inline(always)]
    fn add(&self, fold: *mut Fold, packet: &Measure) {
        // SAFETY: a live map value, shared between CPUs: atomic adds; of two stores of a time either is good.
        unsafe {
            let now = clock(self.cpu);
            if (*fold).first == 0 {
                (*fold).first = now;
            }
            (*fold).last = now;
            add(&raw mut (*fold).bytes, u64::from(packet.bytes));
            if packet.segments > 1 {
                add(&raw mut (*fold).more_segments, u64::from(packet.segments) - 1);
            }
            add(&raw mut (*fold).count, 1);
        }
    }
}

/// Look-up and insertion in one of the maps in use. What is inserted is passed by reference: by value it would be on the stack.
macro_rules! maps {
    ($($get:ident, $insert:ident: $first:ident, $second:ident;)*) => {
        impl Place {$(
            #[inline(always)]
            fn $get(&self, key: &FoldKey) -> Option<*mut Fold> {
                if self.second { $second.get_ptr_mut(key) } else { $first.get_ptr_mut(key) }
            }

            #[inline(always)]
            fn $insert(&self, key: &FoldKey) -> bool {
                let flags = u64::from(BPF_NOEXIST);
                if self.second { $second.insert(key, &NEW, flags) } else { $first.insert(key, &NEW, flags) }.is_ok()
            }
        )*}
    };
}

maps! {
    flow, insert_flow: FOLDS_0, FOLDS_1;
    coarse, insert_coarse: COARSE_0, COARSE_1;
    wide, insert_wide: WIDE_0, WIDE_1;
}

/// Of a flow's key: 32 bits, of which every one depends on all that differs between flows.
#[inline(always)]
fn hash(key: &FoldKey) -> u64 {
    let [three, four, five] = [word(key, 3), word(key, 4), word(key, 5)];
    let [six, seven, eight] = [word(key, 6), word(key, 7), word(key, 8)];
    let mixed = (three ^ four.rotate_left(24) ^ five ^ seven).wrapping_add(six.rotate_left(8) ^ eight);
    let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// Leaves out the source's ports.
#[inline(always)]
fn coarsen(key: &mut FoldKey) {
    key.words[4] &= 0xffff_0000_ffff_0000;
    key.words[3] |= u64::from(fold::COARSE) << shift::KIND;
}

/// Leaves out all ports.
#[inline(always)]
fn widen(key: &mut FoldKey) {
    key.words[4] = 0;
    key.words[3] |= u64::from(fold::COARSE | fold::WIDE) << shift::KIND;
}

/// SAFETY: `counter` is a field of a live map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, value: u64) {
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, value) };
}

/// The time to the kernel's tick: fine enough for a count, and the clock itself costs 40 ns.
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
