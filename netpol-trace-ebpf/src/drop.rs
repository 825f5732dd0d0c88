//! Reads one freed packet into its record. Every pointer may be null or stale: a failed read leaves zeros.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel};
use core::mem::MaybeUninit;
use netpol_trace_common::{ABSENT, CT_WORDS, DropEvent, HEAD_LEN, REJECT_NS, flags};

use crate::emit::field;

/// How a program may read the kernel's structures.
pub trait Memory {
    fn load<T: Copy + Default>(at: *const u8, offset: u32) -> T;
}

/// A plain load through a pointer whose type the verifier knows (BTF tracepoints): about 1 ns a field.
pub struct Typed;

impl Memory for Typed {
    #[inline(always)]
    fn load<T: Copy + Default>(at: *const u8, offset: u32) -> T {
        // SAFETY: the verifier allows this only for a field of the pointer's type; a fault reads as zero. Volatile, so that
        // the compiler neither merges two fields into one wide load nor moves one above its null check.
        unsafe { core::ptr::read_volatile(at.add(offset as usize).cast::<T>()) }
    }
}

/// The probe-read helper, for addresses that are mere numbers: about 30 ns a call.
pub struct Probed;

impl Memory for Probed {
    #[inline(always)]
    fn load<T: Copy + Default>(at: *const u8, offset: u32) -> T {
        let mut value = T::default();
        copy((&raw mut value).cast(), size_of::<T>() as u32, (at as u64).wrapping_add(offset as u64));
        value
    }
}

/// Copies `len` octets of kernel memory; on a fault the helper zeroes the target.
#[inline(always)]
fn copy(to: *mut u8, len: u32, from: u64) -> bool {
    // SAFETY: `to` has `len` octets; the verifier checks that again.
    unsafe { bpf_probe_read_kernel(to.cast(), len, from as *const _) == 0 }
}

/// `head` and `data` stand side by side in every sk_buff. Read with the helper even where typed loads work: later
/// verifiers make them pointers, which can't be subtracted.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Buffer {
    head: u64,
    data: u64,
}

/// Writes one field of the record, which is not yet initialised. The value is evaluated outside of the unsafe block.
macro_rules! set {
    ($event:ident.$field:ident = $value:expr) => {{
        let value = $value;
        // SAFETY: `$event` is the reservation, sized for the record.
        unsafe { (&raw mut (*$event).$field).write(value) };
    }};
}

/// The address of one field of the record, as the target of a copy.
macro_rules! place {
    ($event:ident.$field:ident) => {
        // SAFETY: as for `set!`; only the address is taken.
        unsafe { (&raw mut (*$event).$field).cast::<u8>() }
    };
}

/// Fills every byte of `event`. `rejected`: when an answer to the packet was sent, or 0.
#[inline(always)]
pub fn fill<M: Memory>(
    event: &mut MaybeUninit<DropEvent>,
    skb: *const u8,
    location: u64,
    reason: u32,
    by_location: bool,
    rejected: u64,
) {
    let event = event.as_mut_ptr();
    let buffer: Buffer = Probed::load(skb, field!(offsets.skb_head));
    let network_header: u16 = M::load(skb, field!(offsets.skb_network_header));
    let mut flag = 0u8;

    let time = bpf_ktime();
    if time.wrapping_sub(rejected) < REJECT_NS {
        flag |= flags::REJECTED;
    }
    set!(event.time = time);
    set!(event.location = location);
    set!(event.reason = reason);
    set!(event.len = M::load(skb, field!(offsets.skb_len)));
    set!(event.data_offset = buffer.data.wrapping_sub(buffer.head) as u32);
    set!(event.tail = M::load(skb, field!(offsets.skb_tail)));
    set!(event.network_header = network_header);
    set!(event.mac_header = M::load(skb, field!(offsets.skb_mac_header)));
    set!(event.transport_header = M::load(skb, field!(offsets.skb_transport_header)));
    set!(event.protocol = M::load(skb, field!(offsets.skb_protocol)));
    set!(event.mark = M::load(skb, field!(offsets.skb_mark)));
    set!(event.iif = M::load(skb, field!(offsets.skb_iif)));
    set!(event.pad = [0; 6]);

    if !copy(place!(event.head), HEAD_LEN as u32, buffer.head.wrapping_add(network_header as u64)) {
        flag |= flags::NO_HEAD;
    }
    // gso_size and gso_segs are neighbours in skb_shared_info.
    let end: u32 = M::load(skb, field!(offsets.skb_end));
    let shared_info = buffer.head.wrapping_add(end as u64) as *const u8;
    let gso: [u16; 2] = Probed::load(shared_info, field!(offsets.shinfo_gso_size));
    set!(event.gso_size = gso[0]);
    set!(event.gso_segs = gso[1]);

    let mut netns = 0u32;
    let dev: *const u8 = load_pointer::<M>(skb, field!(offsets.skb_dev));
    if dev.is_null() {
        set!(event.ifindex = 0);
        set!(event.device = [0; 2]);
    } else {
        flag |= flags::DEVICE;
        let name = field!(offsets.dev_name);
        set!(event.ifindex = M::load(dev, field!(offsets.dev_ifindex)));
        set!(event.device = [M::load(dev, name), M::load(dev, name + 8)]);
        let net = load_pointer::<M>(dev, field!(offsets.dev_net));
        if !net.is_null() {
            netns = M::load(net, field!(offsets.net_inum));
        }
    }

    let sk = load_pointer::<M>(skb, field!(offsets.skb_sk));
    if !sk.is_null() {
        flag |= flags::SOCKET;
        if netns == 0 {
            let net = load_pointer::<M>(sk, field!(offsets.sk_net));
            if !net.is_null() {
                netns = M::load(net, field!(offsets.net_inum));
            }
        }
    }
    flag |= destination(event, M::load(skb, field!(offsets.skb_refdst)), &mut netns);
    let nfct_offset = field!(offsets.skb_nfct);
    let nfct: u64 = if nfct_offset == ABSENT { 0 } else { M::load(skb, nfct_offset) };
    flag |= conntrack(event, nfct, &mut netns);

    // Who drops tells a queue's verdict from a queue whose listener died. Only places that count by location need it.
    if by_location && kernel_thread() {
        flag |= flags::KERNEL_THREAD;
    }
    set!(event.netns = netns);
    set!(event.flags = flag);
}

#[inline(always)]
fn load_pointer<M: Memory>(at: *const u8, offset: u32) -> *const u8 {
    M::load::<Pointer>(at, offset).0
}

/// A raw pointer with a default, for [`Memory::load`].
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Pointer(*const u8);

impl Default for Pointer {
    fn default() -> Self {
        Pointer(core::ptr::null())
    }
}

#[inline(always)]
fn bpf_ktime() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether a kernel thread is running, or nothing (the idle task).
#[inline(always)]
fn kernel_thread() -> bool {
    const PF_IDLE: u32 = 0x2;
    const PF_KTHREAD: u32 = 0x0020_0000;
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let flags: u32 = Probed::load(task as *const u8, field!(offsets.task_flags));
    flags & (PF_IDLE | PF_KTHREAD) != 0
}

/// The network namespace of the device at `dev`, by number.
#[inline(always)]
fn netns_of_device(dev: *const u8) -> u32 {
    let net: u64 = Probed::load(dev, field!(offsets.dev_net));
    if net == 0 { 0 } else { Probed::load(net as *const u8, field!(offsets.net_inum)) }
}

/// `skb->_skb_refdst` holds the dst's address with a flag in its lowest bit.
#[inline(always)]
fn destination(event: *mut DropEvent, refdst: u64, netns: &mut u32) -> u8 {
    let dst = (refdst & !1) as *const u8;
    let (mut input, mut ifindex) = (0u64, 0u32);
    if !dst.is_null() {
        input = Probed::load(dst, field!(offsets.dst_input));
        let dev: u64 = Probed::load(dst, field!(offsets.dst_dev));
        if dev != 0 {
            ifindex = Probed::load(dev as *const u8, field!(offsets.dev_ifindex));
            if *netns == 0 {
                *netns = netns_of_device(dev as *const u8);
            }
        }
    }
    set!(event.dst_input = input);
    set!(event.out_ifindex = ifindex);
    if dst.is_null() { 0 } else { flags::DST }
}

/// `skb->_nfct` holds the connection's address with `enum ip_conntrack_info` in its low three bits.
#[inline(always)]
fn conntrack(event: *mut DropEvent, nfct: u64, netns: &mut u32) -> u8 {
    let info = (nfct & 7) as u8;
    let ct = nfct & !7;
    set!(event.ctinfo = info);
    if ct == 0 {
        set!(event.conntrack = [0; CT_WORDS]);
        return if info == 7 { flags::UNTRACKED } else { 0 };
    }
    let tuple = ct + field!(offsets.ct_tuple) as u64;
    copy(place!(event.conntrack), size_of::<[u64; CT_WORDS]>() as u32, tuple);
    if *netns == 0 {
        let net: u64 = Probed::load(ct as *const u8, field!(offsets.ct_net));
        if net != 0 {
            *netns = Probed::load(net as *const u8, field!(offsets.net_inum));
        }
    }
    flags::CONNTRACK
}
