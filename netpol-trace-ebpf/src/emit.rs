//! Sends records to the agent and counts them: each matched packet is emitted, aggregated or lost.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64};
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use netpol_trace_common::{
    Config, DropEvent, Locations, MAX_IGNORED_SITES, Offsets, PerCpu, REASONS, REJECT_NS, ReasonFilter,
};

use crate::drop::bpf_ktime;

/// The loader overrides this value, and the sizes of the maps below.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    arguments: 2,
    ovs_subsystem: 0,
    aggregate: 0,
    recursive: 0,
    slots: 0,
    pad: 0,
    filter: ReasonFilter { anywhere: [0; REASONS / 64], by_location: [0; REASONS / 64], either: [0; REASONS / 64] },
    offsets: Offsets {
        skb_len: 0,
        skb_tail: 0,
        skb_end: 0,
        skb_head: 0,
        skb_network_header: 0,
        skb_mac_header: 0,
        skb_transport_header: 0,
        skb_protocol: 0,
        skb_mark: 0,
        skb_iif: 0,
        skb_dev: 0,
        skb_sk: 0,
        skb_nfct: 0,
        skb_refdst: 0,
        dev_ifindex: 0,
        dev_name: 0,
        dev_net: 0,
        net_inum: 0,
        sk_net: 0,
        dst_dev: 0,
        dst_input: 0,
        ct_tuple: 0,
        ct_net: 0,
        shinfo_gso_size: 0,
        task_flags: 0,
        skb_data_len: 0,
    },
};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
/// A plain array indexed by CPU, with an entry for each possible CPU; the loader sets its size. The address of a plain array is a
/// constant of the programs, while a per-CPU array needs a look-up. Mappable, so that it begins on a page boundary.
#[map]
static PER_CPU: Array<PerCpu> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LOCATIONS: Array<Locations> = Array::with_max_entries(1, 0);
/// Call sites in modules where no enforcer drops packets, as found by the agent.
#[map]
static IGNORED_SITES: HashMap<u64, u8> = HashMap::with_max_entries(MAX_IGNORED_SITES, 0);

/// The address of the configuration. [`field!`] reads its fields, with one volatile load each: otherwise the compiler would use the
/// zeros above as constants.
#[inline(always)]
pub fn config() -> *const Config {
    &raw const CONFIG
}

macro_rules! field {
    ($($path:tt)+) => {
        // SAFETY: CONFIG is a live static; the read is volatile because the loader changes it before load.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::emit::config()).$($path)+) }
    };
}
pub(crate) use field;

/// True if `location` lies in a function whose unspecific drops are recorded, or in code of a module that the agent has not yet
/// classified: the module may have been loaded a moment ago.
#[inline(always)]
pub fn is_interesting_site(location: u64) -> bool {
    let Some(locations) = LOCATIONS.get(0) else { return false };
    let mut i = 0;
    while i < locations.ranges.len() {
        let range = &locations.ranges[i];
        if location >= range.start && location < range.end {
            return true;
        }
        i += 1;
    }
    let image = &locations.image;
    // SAFETY: the value is not read.
    (location < image.start || location >= image.end) && unsafe { IGNORED_SITES.get(location) }.is_none()
}

/// The word with the bit of `slot`, of one of the filter's bitmaps.
#[inline(always)]
pub fn bits(of: fn(&ReasonFilter) -> &[u64; REASONS / 64], slot: usize) -> u64 {
    // SAFETY: as for `field!`; a slot is below REASONS.
    unsafe { core::ptr::read_volatile((&raw const *of(&(*config()).filter)).cast::<u64>().add(slot / 64)) }
}

/// The state of this CPU.
#[inline(always)]
pub fn cpu() -> Option<*mut PerCpu> {
    PER_CPU.get_ptr_mut(number())
}

/// The number of this CPU. A program stays on one CPU until it ends.
#[inline(always)]
pub fn number() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_smp_processor_id() as u32 }
}

/// Counts a freed packet by its reason, before the filter.
#[inline(always)]
pub fn count_seen(cpu: *mut PerCpu, slot: usize) {
    // SAFETY: a CPU's own map value, and a slot is below REASONS. A plain add: `seen` is only an upper bound of
    // `matched`, so a lost increment (by an interrupting run, see `Config::recursive`) costs less than an atomic on every freed packet.
    unsafe { *(&raw mut (*cpu).seen).cast::<u64>().add(slot) += 1 }
}

/// True if the kernel sent an ICMP error or a reset about a packet at this address.
#[inline(always)]
pub fn has_reject_mark(cpu: *mut PerCpu, skb: u64) -> bool {
    // SAFETY: a CPU's own map value.
    unsafe { (*cpu).rejected == skb }
}

/// Returns whether the kernel sent an ICMP error or a reset about this packet just before, and clears the mark: another packet may get
/// the same address.
#[inline(always)]
pub fn take_reject_mark(cpu: *mut PerCpu, skb: u64) -> bool {
    if !has_reject_mark(cpu, skb) {
        return false;
    }
    // SAFETY: a CPU's own map value.
    unsafe {
        (*cpu).rejected = 0;
        bpf_ktime().wrapping_sub((*cpu).rejected_at) < REJECT_NS
    }
}

/// Adds 1 to one of this CPU's counters.
#[inline(always)]
pub fn add(counter: *mut u64) {
    let recursive = field!(recursive) != 0;
    // SAFETY: `counter` is a field of a CPU's own map value. Atomic only on kernels where a softirq can interrupt a run
    // of the program with another run on the same CPU.
    unsafe {
        if recursive {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, 1);
        } else {
            core::ptr::write_volatile(counter, core::ptr::read_volatile(counter) + 1);
        }
    }
}

/// The address of one of this CPU's counters.
macro_rules! counter {
    ($cpu:ident.$name:ident) => {
        // SAFETY: a CPU's own map value; only the address is taken.
        unsafe { &raw mut (*$cpu).counters.$name }
    };
}
pub(crate) use counter;

/// Reserves room for one record, which must be submitted or discarded. Counts a loss and returns `None` if the ring is full.
///
/// The record is built in the reservation itself: an interrupting run would overwrite a per-CPU buffer.
#[inline(always)]
pub fn reserve(cpu: *mut PerCpu) -> Option<RingBufEntry<DropEvent>> {
    let entry = EVENTS.reserve::<DropEvent>(0);
    if entry.is_none() {
        add(counter!(cpu.lost_ring));
    }
    entry
}

/// Sends a record, which must be completely written.
#[inline(always)]
pub fn submit(cpu: *mut PerCpu, event: RingBufEntry<DropEvent>) {
    event.submit(wake_up(cpu));
    add(counter!(cpu.emitted));
}

/// Discards a reservation: the packet was counted in a map instead.
#[inline(always)]
pub fn discard(cpu: *mut PerCpu, event: RingBufEntry<DropEvent>) {
    event.discard(0);
    add(counter!(cpu.aggregated));
}

/// Flags for the submission. A wake-up costs ten times as much as a record: each CPU causes at most one a tick, and only when the
/// reader has caught up. While records come, the reader polls.
#[inline(always)]
fn wake_up(cpu: *mut PerCpu) -> u64 {
    // SAFETY: a helper without arguments, and a CPU's own map value.
    unsafe {
        let tick = bpf_jiffies64();
        if (*cpu).woken == tick {
            return u64::from(BPF_RB_NO_WAKEUP);
        }
        (*cpu).woken = tick;
    }
    0
}
