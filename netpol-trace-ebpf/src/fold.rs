//! Repeated packets: the first of a flow is sent, later ones are counted until the agent empties the maps. A flood costs map
//! updates, not wake-ups.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use netpol_trace_common::PerCpu;
use netpol_trace_common::fold::{
    self, Carry, FULL_COARSE, FULL_FLOWS, Fast, FastSlot, Fold, FoldKey, FoldState, KNOWN_WORDS, Known, MAX_COARSE,
    MAX_FLOWS, MAX_WIDE, WORDS, WORDS_V4, shift,
};

use crate::drop::{self, Memory, Skb, bpf_ktime};
use crate::emit::{self, field};

/// By CPU, as [`emit::cpu`].
#[map]
static FAST_0: Array<Fast> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FAST_1: Array<Fast> = Array::with_max_entries(1, BPF_F_MMAPABLE);
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
    /// Whether the flows that this CPU counts by itself are this run's to touch: not the copy's, which may run in the middle of
    /// the program, and nobody's where the program may run in the middle of itself.
    fast: bool,
}

impl Place {
    #[inline(always)]
    pub fn now(cpu: *mut PerCpu, copy: bool) -> Option<Place> {
        let state = FOLD_STATE.get_ptr_mut(0)?;
        // SAFETY: a live map value. Volatile: the agent changes it.
        let active = unsafe { core::ptr::read_volatile(&raw const (*state).active) };
        Some(Place { second: active != 0, cpu, state, fast: !copy && field!(nests) == 0 })
    }

    /// Counts a packet whose like was sent before. Else leaves in `key` where there may be room for its like.
    #[inline(always)]
    pub fn count(&self, key: &mut FoldKey, packet: &Measure) -> Outcome {
        let hash = hash(key);
        let slot = if self.fast { self.slot(hash) } else { None };
        if let Some(slot) = slot
            && self.has(slot, key)
        {
            self.add_alone(slot, packet);
            return Outcome::Counted;
        }
        if self.is_known(hash)
            && let Some(fold) = self.flow(key)
        {
            match slot {
                // SAFETY: a CPU's own map value that no other run touches.
                Some(slot) if unsafe { (*slot).key.words[3] } == 0 => {
                    unsafe { (&raw mut (*slot).key).write(*key) };
                    self.add_alone(slot, packet);
                }
                _ => self.add(fold, packet),
            }
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
            if self.insert_flow(key) {
                self.set_known(hash(key));
                return Outcome::Send;
            }
            if let Some(fold) = self.flow(key) {
                self.set_known(hash(key));
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

    /// The only slot on this CPU that a flow may have.
    #[inline(always)]
    fn slot(&self, hash: u64) -> Option<*mut FastSlot> {
        let cpu = emit::number();
        let fast = if self.second { FAST_1.get_ptr_mut(cpu) } else { FAST_0.get_ptr_mut(cpu) }?;
        let at = hash >> (32 - fold::FAST_SLOTS.ilog2());
        // SAFETY: a live map value of that many slots.
        Some(unsafe { (&raw mut (*fast).slots).cast::<FastSlot>().add(at as usize) })
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

/// A word of the key, from where it is: the compiler would keep all of them twice, and the stack is short.
#[inline(always)]
fn word(key: &FoldKey, at: usize) -> u64 {
    // SAFETY: a live reference.
    unsafe { core::ptr::read_volatile(&raw const key.words[at]) }
}

/// Of a flow's key: 32 bits.
#[inline(always)]
fn hash(key: &FoldKey) -> u64 {
    let [three, four, five] = [word(key, 3), word(key, 4), word(key, 5)];
    let [six, seven, eight] = [word(key, 6), word(key, 7), word(key, 8)];
    let mixed = (three ^ four.rotate_left(24) ^ five ^ seven).wrapping_add(six.rotate_left(8) ^ eight);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
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

/// What a packet adds to its flow's count.
pub struct Measure {
    pub bytes: u32,
    pub segments: u32,
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

const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Whether packets like this one are counted.
#[inline(always)]
pub fn folds(key: &FoldKey) -> bool {
    key.kind() != fold::NOT_FOLDED
}

/// What of a packet's headers tells its flow from others.
struct Flow {
    kind: u8,
    protocol: u8,
    /// The word of ports, without those before NAT.
    ports: u64,
    tcp_flags: u8,
    bytes: u32,
}

/// Writes the key of the packet's flow. Its kind stays [`fold::NOT_FOLDED`] for packets that can't be told apart this cheaply:
/// options, extension headers, a transport header beyond the linear part, no network namespace.
#[inline(always)]
pub fn read<M: Memory>(key: &mut FoldKey, skb: &Skb, location: u64, reason: u32, extra: u8) -> Measure {
    let head = M::open(skb.head, skb.network_header);
    let unknown = Measure { bytes: skb.len, segments: 1 };
    let tracked = skb.conntrack() != 0;
    let mut original_ports = 0;
    let flow = if skb.protocol == ETH_P_IP {
        let Some(flow) = ipv4::<M>(&head, skb) else { return unknown };
        key.words[5] = M::get(&head, 12);
        if tracked {
            let [a, _, c, _, e] = tuple(key, skb);
            key.words[6] = a & 0xffff_ffff | c & !0xffff_ffff;
            original_ports = ports(c, e);
            let mut i = 8;
            while i < WORDS {
                key.words[i] = 0;
                i += 1;
            }
        }
        flow
    } else if skb.protocol == ETH_P_IPV6 {
        let Some(flow) = ipv6::<M>(&head, skb) else { return unknown };
        if tracked {
            let [a, b, c, d, e] = tuple(key, skb);
            key.words[9] = a;
            key.words[10] = b;
            key.words[11] = c >> 32 | d << 32;
            key.words[12] = d >> 32 | e << 32;
            original_ports = ports(c, e);
        }
        let mut i = 0;
        while i < 4 {
            key.words[5 + i] = M::get(&head, 8 + 8 * i as u32);
            i += 1;
        }
        flow
    } else {
        return unknown;
    };
    if skb.netns == 0 {
        return unknown;
    }
    key.words[0] = u64::from(reason) | u64::from(skb.ifindex) << 32;
    key.words[1] = location;
    key.words[2] = u64::from(skb.iif) | u64::from(skb.netns) << 32;
    key.words[3] = u64::from(flow.protocol)
        | u64::from(flow.tcp_flags & fold::TCP_FLAGS) << shift::TCP_FLAGS
        | (skb.nfct & 7) << shift::CTINFO
        | u64::from(flow.kind) << shift::KIND
        | u64::from(extra) << shift::FLAGS;
    key.words[4] = original_ports | flow.ports;
    Measure { bytes: flow.bytes, segments: drop::segments::<M>(skb) }
}

/// The words of conntrack's original tuple, by way of the key's last ones: the stack is short.
#[inline(always)]
fn tuple(key: &mut FoldKey, skb: &Skb) -> [u64; 5] {
    skb.tuple((&raw mut key.words[WORDS - 5]).cast());
    [word(key, 8), word(key, 9), word(key, 10), word(key, 11), word(key, 12)]
}

/// The upper half of the word of ports, from the conntrack tuple's words that hold them.
#[inline(always)]
fn ports(source: u64, destination: u64) -> u64 {
    (source & 0xffff) << 32 | (destination >> 32 & 0xffff) << 48
}

#[inline(always)]
fn ipv4<M: Memory>(head: &M::Head, skb: &Skb) -> Option<Flow> {
    // Version, length of the header, type of service, length of the packet; in memory's order.
    let first: u32 = M::get(head, 0);
    if first as u8 != 0x45 {
        return None;
    }
    let length = u16::from_be((first >> 16) as u16);
    let bytes = if length != 0 { u32::from(length) } else { skb.len };
    let protocol: u8 = M::get(head, 9);
    // Behind the first fragment there is no transport header.
    if u16::from_be(M::get(head, 6)) & 0x1fff != 0 {
        return Some(Flow { kind: fold::V4 | fold::FRAGMENT, protocol, ports: 0, tcp_flags: 0, bytes });
    }
    transport::<M, 20>(head, skb, Flow { kind: fold::V4, protocol, ports: 0, tcp_flags: 0, bytes })
}

#[inline(always)]
fn ipv6<M: Memory>(head: &M::Head, skb: &Skb) -> Option<Flow> {
    let protocol: u8 = M::get(head, 6);
    if !matches!(protocol, TCP | UDP | ICMPV6 | SCTP) {
        return None;
    }
    let length = u16::from_be(M::get(head, 4));
    let bytes = if length != 0 { u32::from(length) + 40 } else { skb.len };
    transport::<M, 40>(head, skb, Flow { kind: fold::V6, protocol, ports: 0, tcp_flags: 0, bytes })
}

/// Ports and flags, from the transport header at `AT`.
#[inline(always)]
fn transport<M: Memory, const AT: u32>(head: &M::Head, skb: &Skb, mut flow: Flow) -> Option<Flow> {
    let needed = if flow.protocol == TCP { 14 } else { 8 };
    if u32::from(skb.network_header) + AT + needed > skb.tail {
        return None;
    }
    flow.ports = u64::from(M::get::<u32>(head, AT));
    if flow.protocol == TCP {
        flow.tcp_flags = M::get(head, AT + 13);
    } else if matches!(flow.protocol, ICMP | ICMPV6) {
        // The checksum differs between packets; the identifier doesn't.
        flow.ports = flow.ports & 0xffff | u64::from(M::get::<u16>(head, AT + 4)) << 16;
    }
    Some(flow)
}
