//! Repeated packets: the first of a flow is sent, later ones are counted until the agent empties the maps. A flood costs map
//! updates, not wake-ups.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use netpol_trace_common::PerCpu;
use netpol_trace_common::fold::{self, Carry, Fold, FoldKey, FoldState, MAX_COARSE, MAX_FLOWS};

use crate::drop::{Memory, Skb, bpf_ktime};

#[map]
static FOLDS_0: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
static FOLDS_1: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
static COARSE_0: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_COARSE, 0);
#[map]
static COARSE_1: HashMap<FoldKey, Fold> = HashMap::with_max_entries(MAX_COARSE, 0);
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
}

impl Place {
    pub fn now(cpu: *mut PerCpu) -> Option<Place> {
        let state = FOLD_STATE.get_ptr_mut(0)?;
        // SAFETY: a live map value. Volatile: the agent changes it.
        let active = unsafe { core::ptr::read_volatile(&raw const (*state).active) };
        Some(Place { second: active != 0, cpu, state })
    }

    /// Counts a packet whose like was sent before.
    #[inline(always)]
    pub fn count(&self, key: &mut FoldKey, packet: &Measure) -> Outcome {
        if let Some(fold) = self.flow(key) {
            packet.add(self.cpu, fold);
            return Outcome::Counted;
        }
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const (*self.state).full) } != 0 {
            coarsen(key);
            if let Some(fold) = self.coarse(key) {
                packet.add(self.cpu, fold);
                return Outcome::Counted;
            }
        }
        Outcome::Send
    }

    /// Makes room for the packets that follow the one about to be sent, and leaves in `key` under which they will be found.
    /// `Counted`: another CPU was first, and this packet is counted there.
    #[inline(always)]
    pub fn claim(&self, key: &mut FoldKey, packet: &Measure) -> Outcome {
        if key.kind & fold::COARSE == 0 {
            if self.insert_flow(key) {
                return Outcome::Send;
            }
            if let Some(fold) = self.flow(key) {
                packet.add(self.cpu, fold);
                return Outcome::Counted;
            }
            // SAFETY: a live map value.
            unsafe { core::ptr::write_volatile(&raw mut (*self.state).full, 1) };
            coarsen(key);
        }
        if self.insert_coarse(key) {
            return Outcome::Send;
        }
        if let Some(fold) = self.coarse(key) {
            packet.add(self.cpu, fold);
            return Outcome::Counted;
        }
        // No room at all: each is sent by itself.
        key.kind = fold::NOT_FOLDED;
        Outcome::Send
    }

    #[inline(always)]
    fn flow(&self, key: &FoldKey) -> Option<*mut Fold> {
        if self.second { FOLDS_1.get_ptr_mut(key) } else { FOLDS_0.get_ptr_mut(key) }
    }

    #[inline(always)]
    fn coarse(&self, key: &FoldKey) -> Option<*mut Fold> {
        if self.second { COARSE_1.get_ptr_mut(key) } else { COARSE_0.get_ptr_mut(key) }
    }

    #[inline(always)]
    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be on the stack")]
    fn insert_flow(&self, key: &FoldKey) -> bool {
        let flags = u64::from(BPF_NOEXIST);
        if self.second { FOLDS_1.insert(key, &NEW, flags) } else { FOLDS_0.insert(key, &NEW, flags) }.is_ok()
    }

    #[inline(always)]
    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be on the stack")]
    fn insert_coarse(&self, key: &FoldKey) -> bool {
        let flags = u64::from(BPF_NOEXIST);
        if self.second { COARSE_1.insert(key, &NEW, flags) } else { COARSE_0.insert(key, &NEW, flags) }.is_ok()
    }
}

#[inline(always)]
fn coarsen(key: &mut FoldKey) {
    key.ports[0] = 0;
    key.original_ports[0] = 0;
    key.kind |= fold::COARSE;
}

/// What a packet adds to its flow's count.
pub struct Measure {
    pub bytes: u32,
    pub segments: u32,
}

impl Measure {
    #[inline(always)]
    fn add(&self, cpu: *mut PerCpu, fold: *mut Fold) {
        // SAFETY: a live map value, shared between CPUs: atomic adds; of two stores of a time either is good.
        unsafe {
            let now = clock(cpu);
            if (*fold).first == 0 {
                (*fold).first = now;
            }
            (*fold).last = now;
            add(&raw mut (*fold).bytes, u64::from(self.bytes));
            if self.segments > 1 {
                add(&raw mut (*fold).more_segments, u64::from(self.segments) - 1);
            }
            add(&raw mut (*fold).count, 1);
        }
    }
}

/// SAFETY: `counter` is a field of a live map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, value: u64) {
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, value) };
}

/// The time to the kernel's tick: fine enough for a count, and the clock itself costs 40 ns.
#[inline(always)]
fn clock(cpu: *mut PerCpu) -> u64 {
    // SAFETY: a helper without arguments, and a live per-CPU map value.
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

/// Reads what tells this packet's flow from others into `key`; its `kind` stays [`fold::NOT_FOLDED`] for packets that can't
/// be told apart this cheaply: options, extension headers, a transport header beyond the linear part.
#[inline(always)]
pub fn read<M: Memory>(key: &mut FoldKey, skb: &Skb) -> Measure {
    let head = M::open(skb.head, skb.network_header);
    let mut measure = Measure { bytes: skb.len, segments: 1 };
    let (kind, transport) = if skb.protocol == ETH_P_IP {
        let [version, protocol] = [M::get::<u8>(&head, 0), M::get::<u8>(&head, 9)];
        if version != 0x45 {
            return measure;
        }
        key.source[0] = M::get(&head, 12);
        key.destination[0] = M::get(&head, 16);
        key.protocol = protocol;
        let length = u16::from_be(M::get(&head, 2));
        if length != 0 {
            measure.bytes = u32::from(length);
        }
        // Behind the first fragment there is no transport header.
        if u16::from_be(M::get(&head, 6)) & 0x1fff != 0 {
            key.kind = fold::V4 | fold::FRAGMENT;
            return measure;
        }
        (fold::V4, 20)
    } else if skb.protocol == ETH_P_IPV6 {
        let protocol: u8 = M::get(&head, 6);
        if !matches!(protocol, TCP | UDP | ICMPV6 | SCTP) {
            return measure;
        }
        let mut i = 0;
        while i < 4 {
            key.source[i] = M::get(&head, 8 + 4 * i as u32);
            key.destination[i] = M::get(&head, 24 + 4 * i as u32);
            i += 1;
        }
        key.protocol = protocol;
        let length = u16::from_be(M::get(&head, 4));
        if length != 0 {
            measure.bytes = u32::from(length) + 40;
        }
        (fold::V6, 40)
    } else {
        return measure;
    };
    let needed = if key.protocol == TCP { 14 } else { 8 };
    if u32::from(skb.network_header) + transport + needed > skb.tail {
        return measure;
    }
    let (ports, flags): ([u16; 2], u8) = if transport == 20 {
        (M::get(&head, 20), if key.protocol == TCP { M::get(&head, 33) } else { 0 })
    } else {
        (M::get(&head, 40), if key.protocol == TCP { M::get(&head, 53) } else { 0 })
    };
    key.ports = ports;
    if matches!(key.protocol, ICMP | ICMPV6) {
        // The checksum differs between packets; the identifier doesn't.
        key.ports[1] = if transport == 20 { M::get(&head, 24) } else { M::get(&head, 44) };
    }
    key.tcp_flags = flags & fold::TCP_FLAGS;
    key.kind = kind;
    measure
}
