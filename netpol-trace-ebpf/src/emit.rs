//! How every record leaves the kernel, and the books of it: what was matched is emitted, folded or lost.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use core::mem::MaybeUninit;
use netpol_trace_common::{Config, DULL_LOCATIONS, DropEvent, Filter, Locations, Offsets, PerCpu, REASONS, REJECT_NS};

use crate::drop::bpf_ktime;

/// The loader overrides it, and sets the size below too.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    arguments: 2,
    ovs_subsystem: 0,
    fold: 0,
    nests: 0,
    filter: Filter { anywhere: [0; REASONS / 64], by_location: [0; REASONS / 64] },
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
        pad: 0,
    },
};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
#[map]
static PER_CPU: PerCpuArray<PerCpu> = PerCpuArray::with_max_entries(1, 0);
#[map]
static LOCATIONS: Array<Locations> = Array::with_max_entries(1, 0);
/// Places in modules where no enforcer drops anything, as the agent has found.
#[map]
static DULL: HashMap<u64, u8> = HashMap::with_max_entries(DULL_LOCATIONS, 0);

/// The address of the configuration: read its fields with [`field!`], one volatile load each, so that the compiler
/// can't fold in the zeros above and the verifier sees the loader's constants.
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

/// Whether `location` lies in one of the functions that make an unspecific reason interesting, or in a module's code that
/// the agent has not judged yet: a module may be newer than what the agent knows.
#[inline(always)]
pub fn location_matters(location: u64) -> bool {
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
    // SAFETY: the value is not looked at, only whether there is one.
    (location < image.start || location >= image.end) && unsafe { DULL.get(location) }.is_none()
}

/// What this CPU keeps between two runs.
#[inline(always)]
pub fn cpu() -> Option<*mut PerCpu> {
    PER_CPU.get_ptr_mut(0)
}

/// Counts an event before anything is decided about it. Says whether an answer to the packet was sent right before: the note
/// is taken down for every packet that is freed, since another one may get its address.
#[inline(always)]
pub fn count_seen(cpu: *mut PerCpu, slot: u32, skb: u64) -> bool {
    // SAFETY: a live local. Volatile, or the compiler drops the mask that it knows to be needless and the verifier doesn't.
    let slot = unsafe { core::ptr::read_volatile(&raw const slot) } as usize & (REASONS - 1);
    // SAFETY: a live per-CPU map value; the mask keeps the index inside of it. A plain add: `seen` only bounds `matched` from
    // above, and a lost increment (a nested run before 6.1) is worth less than an atomic on every freed packet.
    unsafe {
        (*cpu).seen[slot] += 1;
        if (*cpu).rejected != skb {
            return false;
        }
        (*cpu).rejected = 0;
        bpf_ktime().wrapping_sub((*cpu).rejected_at) < REJECT_NS
    }
}

/// Adds 1 to a counter of the books.
#[inline(always)]
pub fn add(counter: *mut u64) {
    let nests = field!(nests) != 0;
    // SAFETY: `counter` is a field of a live per-CPU map value. Atomic only where a softirq can run the program again in the
    // middle of itself on the same CPU.
    unsafe {
        if nests {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, 1);
        } else {
            core::ptr::write_volatile(counter, core::ptr::read_volatile(counter) + 1);
        }
    }
}

/// One of this CPU's counters.
macro_rules! counter {
    ($cpu:ident.$name:ident) => {
        // SAFETY: a live per-CPU map value; only the address is taken.
        unsafe { &raw mut (*$cpu).counters.$name }
    };
}
pub(crate) use counter;

/// Reserves room for one record and lets `fill` write all of it, unless that says that it need not be sent. `None`: the ring
/// was full, which is counted.
///
/// The record is built in the reservation itself: per-CPU scratch would be overwritten by a nested run.
#[inline(always)]
pub fn emit(cpu: *mut PerCpu, fill: impl FnOnce(&mut MaybeUninit<DropEvent>) -> bool) -> Option<()> {
    let Some(mut entry) = EVENTS.reserve::<DropEvent>(0) else {
        add(counter!(cpu.lost_ring));
        return None;
    };
    if fill(&mut entry) {
        // Default flags: the kernel wakes the reader only when it has caught up, so a busy ring costs no wake-ups.
        entry.submit(0);
        add(counter!(cpu.emitted));
    } else {
        entry.discard(0);
        add(counter!(cpu.folded));
    }
    Some(())
}
