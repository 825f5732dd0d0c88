//! How every record leaves the kernel, and the books of it: what was matched is emitted, aggregated or lost.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64};
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use netpol_trace_common::{Config, DULL_LOCATIONS, DropEvent, Filter, Locations, Offsets, PerCpu, REASONS, REJECT_NS};

use crate::drop::bpf_ktime;

/// The loader overrides it, and sets the size below too.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    arguments: 2,
    ovs_subsystem: 0,
    fold: 0,
    recursive: 0,
    slots: 0,
    pad: 0,
    filter: Filter { anywhere: [0; REASONS / 64], by_location: [0; REASONS / 64], either: [0; REASONS / 64] },
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
/// A plain array indexed by CPU, with an entry for each CPU that the machine may have: the loader sets its size. The address of
/// a plain array is a constant of the programs; a per-CPU array is looked up. Mappable, so that it begins with a page.
#[map]
static PER_CPU: Array<PerCpu> = Array::with_max_entries(1, BPF_F_MMAPABLE);
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

/// The word of one of the filter's bitmaps that has the bit of `slot`.
#[inline(always)]
pub fn bits(of: fn(&Filter) -> &[u64; REASONS / 64], slot: usize) -> u64 {
    // SAFETY: as for `field!`; a slot is below REASONS.
    unsafe { core::ptr::read_volatile((&raw const *of(&(*config()).filter)).cast::<u64>().add(slot / 64)) }
}

/// What this CPU keeps between two runs.
#[inline(always)]
pub fn cpu() -> Option<*mut PerCpu> {
    PER_CPU.get_ptr_mut(number())
}

/// The CPU that this runs on. Until its end a program stays there.
#[inline(always)]
pub fn number() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_smp_processor_id() as u32 }
}

/// Counts an event before anything is decided about it.
#[inline(always)]
pub fn count_seen(cpu: *mut PerCpu, slot: usize) {
    // SAFETY: a CPU's own map value, and a slot is below REASONS. A plain add: `seen` only bounds `matched` from above, and a lost
    // increment (a recursive run, see `Config::recursive`) is worth less than an atomic on every freed packet.
    unsafe { *(&raw mut (*cpu).seen).cast::<u64>().add(slot) += 1 }
}

/// Whether an answer to a packet at this address was noted.
#[inline(always)]
pub fn has_note(cpu: *mut PerCpu, skb: u64) -> bool {
    // SAFETY: a CPU's own map value.
    unsafe { (*cpu).rejected == skb }
}

/// Whether an answer to the packet was sent right before. The note is taken down for every packet that is freed, since another
/// one may get its address.
#[inline(always)]
pub fn take_note(cpu: *mut PerCpu, skb: u64) -> bool {
    if !has_note(cpu, skb) {
        return false;
    }
    // SAFETY: a CPU's own map value.
    unsafe {
        (*cpu).rejected = 0;
        bpf_ktime().wrapping_sub((*cpu).rejected_at) < REJECT_NS
    }
}

/// Adds 1 to a counter of the books.
#[inline(always)]
pub fn add(counter: *mut u64) {
    let recursive = field!(recursive) != 0;
    // SAFETY: `counter` is a field of a CPU's own map value. Atomic only on kernels that let a softirq run the program in the
    // middle of another run on the same CPU.
    unsafe {
        if recursive {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, 1);
        } else {
            core::ptr::write_volatile(counter, core::ptr::read_volatile(counter) + 1);
        }
    }
}

/// One of this CPU's counters.
macro_rules! counter {
    ($cpu:ident.$name:ident) => {
        // SAFETY: a CPU's own map value; only the address is taken.
        unsafe { &raw mut (*$cpu).counters.$name }
    };
}
pub(crate) use counter;

/// Reserves room for one record, which must be submitted or discarded. `None`: the ring was full, which is counted.
///
/// The record is built in the reservation itself: per-CPU scratch would be overwritten by a recursive run.
#[inline(always)]
pub fn reserve(cpu: *mut PerCpu) -> Option<RingBufEntry<DropEvent>> {
    let entry = EVENTS.reserve::<DropEvent>(0);
    if entry.is_none() {
        add(counter!(cpu.lost_ring));
    }
    entry
}

/// Sends a record, all of which was written.
#[inline(always)]
pub fn submit(cpu: *mut PerCpu, event: RingBufEntry<DropEvent>) {
    event.submit(wake_up(cpu));
    add(counter!(cpu.emitted));
}

/// Gives the room back: the packet was counted after all.
#[inline(always)]
pub fn discard(cpu: *mut PerCpu, event: RingBufEntry<DropEvent>) {
    event.discard(0);
    add(counter!(cpu.aggregated));
}

/// A wake-up costs ten times what a record does: one a tick from each CPU, and only when the reader has caught up. It looks again
/// by itself while records come.
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
