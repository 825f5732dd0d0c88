//! Reads a freed packet into a record. Any pointer may be null or stale: a failed read yields zeros.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel};
use core::mem::MaybeUninit;
use netpol_trace_common::aggregate::AggregateKey;
use netpol_trace_common::{ABSENT, CT_WORDS, DST_BYTES, DropEvent, HEAD_LEN, flags};

use crate::emit::field;

/// A way to read the kernel's structures, by what the kernel's verifier allows.
pub trait Memory {
    fn load<T: Copy + Default>(at: *const u8, offset: u32) -> T;

    /// The packet's headers, from `offset` behind `head` on.
    type Head;
    fn open(head: Pointer, offset: u16) -> Self::Head;
    /// A field of the headers: `at` is a constant below [`HEADERS`].
    fn get<T: Copy + Default>(head: &Self::Head, at: u32) -> T;
    /// Copies [`HEAD_LEN`] bytes from `offset` behind `head` on; false if they can't be read.
    fn copy_head(to: *mut u8, head: Pointer, offset: u16) -> bool {
        copy(to, HEAD_LEN as u32, (head.0 as u64).wrapping_add(u64::from(offset)))
    }
}

/// Bytes of headers that [`Memory::get`] can read: IPv6's header and TCP's up to its flags.
const HEADERS: usize = 56;

/// A copy of the headers.
#[repr(C)]
pub struct Copied([u64; HEADERS / 8]);

impl Copied {
    #[inline(always)]
    fn of(head: Pointer, offset: u16) -> Copied {
        let mut copied = Copied([0; HEADERS / 8]);
        copy((&raw mut copied).cast(), HEADERS as u32, (head.0 as u64).wrapping_add(u64::from(offset)));
        copied
    }

    #[inline(always)]
    fn get<T: Copy>(&self, at: u32) -> T {
        // SAFETY: callers stay below HEADERS, and the verifier checks it; plain words of any alignment.
        unsafe { (&raw const self.0).cast::<u8>().add(at as usize).cast::<T>().read_unaligned() }
    }
}

/// Plain loads, of the packet's headers too: from Linux 6.17 on the verifier accepts `head` as readable memory.
pub struct Direct;

impl Memory for Direct {
    #[inline(always)]
    fn load<T: Copy + Default>(at: *const u8, offset: u32) -> T {
        Typed::load(at, offset)
    }

    type Head = *const u8;
    #[inline(always)]
    fn open(head: Pointer, offset: u16) -> *const u8 {
        head.0.wrapping_add(offset as usize)
    }
    #[inline(always)]
    fn get<T: Copy + Default>(head: &*const u8, at: u32) -> T {
        Typed::load(*head, at)
    }

    /// Word by word, without a helper call. A failed read yields zeros, which are no IP header.
    #[inline(always)]
    fn copy_head(to: *mut u8, head: Pointer, offset: u16) -> bool {
        let head = Self::open(head, offset);
        let mut at = 0;
        while at < HEAD_LEN as u32 {
            let word: u64 = Self::get(&head, at);
            // SAFETY: `to` has HEAD_LEN bytes, a multiple of 8, at an aligned address. Volatile, because the compiler would otherwise
            // load all words first and need more stack than there is.
            unsafe { core::ptr::write_volatile(to.add(at as usize).cast::<u64>(), word) };
            at += 8;
        }
        true
    }
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

    type Head = Copied;
    #[inline(always)]
    fn open(head: Pointer, offset: u16) -> Copied {
        Copied::of(head, offset)
    }
    #[inline(always)]
    fn get<T: Copy + Default>(head: &Copied, at: u32) -> T {
        head.get(at)
    }
}

/// The probe-read helper, for addresses whose type the verifier does not know: about 30 ns a call.
pub struct Probed;

impl Memory for Probed {
    #[inline(always)]
    fn load<T: Copy + Default>(at: *const u8, offset: u32) -> T {
        let mut value = T::default();
        copy((&raw mut value).cast(), size_of::<T>() as u32, (at as u64).wrapping_add(offset as u64));
        value
    }

    type Head = Copied;
    #[inline(always)]
    fn open(head: Pointer, offset: u16) -> Copied {
        Copied::of(head, offset)
    }
    #[inline(always)]
    fn get<T: Copy + Default>(head: &Copied, at: u32) -> T {
        head.get(at)
    }
}

/// Copies `len` bytes of kernel memory; on a fault the helper zeroes the target.
#[inline(always)]
fn copy(to: *mut u8, len: u32, from: u64) -> bool {
    // SAFETY: `to` has `len` bytes; the verifier checks it too.
    unsafe { bpf_probe_read_kernel(to.cast(), len, from as *const _) == 0 }
}

/// The fields of an skb from which both the key and the record are made.
pub struct Skb {
    at: *const u8,
    pub head: Pointer,
    pub len: u32,
    pub tail: u32,
    pub network_header: u16,
    pub protocol: u16,
    pub iif: u32,
    dev: *const u8,
    pub ifindex: u32,
    pub netns: u32,
    pub nfct: u64,
}

impl Skb {
    #[inline(always)]
    pub fn read<M: Memory>(at: *const u8) -> Skb {
        let nfct_offset = field!(offsets.skb_nfct);
        let mut skb = Skb {
            at,
            head: M::load(at, field!(offsets.skb_head)),
            len: M::load(at, field!(offsets.skb_len)),
            tail: M::load(at, field!(offsets.skb_tail)),
            network_header: M::load(at, field!(offsets.skb_network_header)),
            protocol: M::load(at, field!(offsets.skb_protocol)),
            iif: M::load(at, field!(offsets.skb_iif)),
            dev: load_pointer::<M>(at, field!(offsets.skb_dev)),
            ifindex: 0,
            netns: 0,
            nfct: if nfct_offset == ABSENT { 0 } else { M::load(at, nfct_offset) },
        };
        if !skb.dev.is_null() {
            skb.ifindex = M::load(skb.dev, field!(offsets.dev_ifindex));
            skb.netns = netns::<M>(skb.dev, field!(offsets.dev_net));
        }
        if skb.netns == 0 {
            let sk = load_pointer::<M>(at, field!(offsets.skb_sk));
            if !sk.is_null() {
                skb.netns = netns::<M>(sk, field!(offsets.sk_net));
            }
        }
        let ct = skb.conntrack();
        if ct != 0 && skb.netns == 0 {
            let net: u64 = Probed::load(ct as *const u8, field!(offsets.ct_net));
            if net != 0 {
                skb.netns = Probed::load(net as *const u8, field!(offsets.net_inum));
            }
        }
        skb
    }

    /// Address of the packet's conntrack entry, or 0.
    #[inline(always)]
    pub fn conntrack(&self) -> u64 {
        self.nfct & !7
    }

    /// Copies the beginning of conntrack's original tuple: `src { u3[16], u[2], l3num[2] } dst { u3[16], u[2], … }` in words of 8.
    #[inline(always)]
    pub fn tuple(&self, to: *mut [u64; 5]) {
        copy(to.cast(), 40, self.conntrack() + u64::from(field!(offsets.ct_tuple)));
    }

    #[inline(always)]
    fn flags<M: Memory>(&self) -> u8 {
        let device = if self.dev.is_null() { 0 } else { flags::DEVICE };
        let sk = load_pointer::<M>(self.at, field!(offsets.skb_sk));
        let socket = if sk.is_null() { 0 } else { flags::SOCKET };
        let conntrack = match (self.conntrack(), self.nfct) {
            (0, 7) => flags::UNTRACKED,
            (0, _) => 0,
            _ => flags::CONNTRACK,
        };
        device | socket | conntrack
    }
}

/// The number of the network namespace to which the structure at `at` has a pointer at `offset`; 0 if the pointer is null.
#[inline(always)]
fn netns<M: Memory>(at: *const u8, offset: u32) -> u32 {
    let net = load_pointer::<M>(at, offset);
    if net.is_null() { 0 } else { M::load(net, field!(offsets.net_inum)) }
}

/// Writes one field of the record, which is not yet initialised. The value is evaluated outside the unsafe block.
macro_rules! set {
    ($event:ident.$field:ident = $value:expr) => {{
        let value = $value;
        // SAFETY: `$event` is the reservation, sized for the record.
        unsafe { (&raw mut (*$event).$field).write(value) };
    }};
}

/// Writes an array word by word. For a whole array the compiler would call a byte-wise copy function, whose loop the verifier follows at
/// every call.
#[inline(always)]
pub fn words<T: Copy, const N: usize>(to: *mut T, from: [T; N]) {
    let mut i = 0;
    while i < N {
        // SAFETY: callers pass a field of N such words.
        unsafe { core::ptr::write_volatile(to.add(i), from[i]) };
        i += 1;
    }
}

/// The address of a field of the record, as the target of a copy.
macro_rules! address_of {
    ($event:ident.$field:ident) => {
        // SAFETY: as for `set!`; only the address is taken.
        unsafe { (&raw mut (*$event).$field).cast::<u8>() }
    };
}

/// Fills every byte of `event`. `extra` has the flags that the caller determined.
#[inline(always)]
pub fn fill<M: Memory>(
    event: &mut MaybeUninit<DropEvent>,
    skb: &Skb,
    key: &AggregateKey,
    location: u64,
    reason: u32,
    extra: u8,
) {
    let event = event.as_mut_ptr();
    let at = skb.at;
    let mut flag = skb.flags::<M>() | extra;
    let mut netns = skb.netns;
    set!(event.time = bpf_ktime());
    set!(event.location = location);
    set!(event.reason = reason);
    set!(event.len = skb.len);
    // Later verifiers reject the subtraction of the pointers `data` and `head`; but the linear part ends at `tail`.
    let linear = skb.len.wrapping_sub(M::load(at, field!(offsets.skb_data_len)));
    set!(event.data_offset = skb.tail.wrapping_sub(linear));
    set!(event.tail = skb.tail);
    set!(event.network_header = skb.network_header);
    set!(event.mac_header = M::load(at, field!(offsets.skb_mac_header)));
    set!(event.transport_header = M::load(at, field!(offsets.skb_transport_header)));
    set!(event.protocol = skb.protocol);
    set!(event.mark = M::load(at, field!(offsets.skb_mark)));
    set!(event.iif = skb.iif);
    words(address_of!(event.pad).cast::<u16>(), [0; 3]);
    set!(event.ctinfo = skb.nfct as u8 & 7);
    if skb.conntrack() == 0 {
        words(address_of!(event.conntrack).cast(), [0u64; CT_WORDS]);
    } else {
        let tuple = skb.conntrack() + u64::from(field!(offsets.ct_tuple));
        copy(address_of!(event.conntrack), size_of::<[u64; CT_WORDS]>() as u32, tuple);
    }
    words(address_of!(event.key).cast(), key.words);
    set!(event.ifindex = skb.ifindex);
    if skb.dev.is_null() {
        words(address_of!(event.device).cast(), [0u64; 2]);
    } else {
        let name = field!(offsets.dev_name);
        set!(event.device = [M::load(skb.dev, name), M::load(skb.dev, name + 8)]);
    }
    let gso = if skb.len <= SMALL { [0; 2] } else { gso::<M>(skb) };
    set!(event.gso_size = gso[0]);
    set!(event.gso_segs = gso[1]);
    flag |= destination(event, M::load(at, field!(offsets.skb_refdst)), &mut netns);
    // Last, because `destination` uses this field as a buffer.
    if !M::copy_head(address_of!(event.head), skb.head, skb.network_header) {
        flag |= flags::NO_HEAD;
    }
    set!(event.netns = netns);
    set!(event.flags = flag);
}

/// `gso_size` and `gso_segs`, neighbours in skb_shared_info.
#[inline(always)]
fn gso<M: Memory>(skb: &Skb) -> [u16; 2] {
    let end: u32 = M::load(skb.at, field!(offsets.skb_end));
    let shared_info = (skb.head.0 as u64).wrapping_add(end as u64) as *const u8;
    Probed::load(shared_info, field!(offsets.shinfo_gso_size))
}

/// Packets up to IPv4's smallest MTU are never offloaded segments, so that their shared info is not read.
const SMALL: u32 = 576;

/// Number of packets on the wire that the skb stands for.
#[inline(always)]
pub fn segments<M: Memory>(skb: &Skb) -> u32 {
    if skb.len <= SMALL {
        return 1;
    }
    let [size, count] = gso::<M>(skb);
    match (size, count) {
        (0, _) => 1,
        (_, 1..) => u32::from(count),
        // The headers are counted too: a difference only where the length is close to a multiple.
        (size, 0) => skb.len.div_ceil(u32::from(size)),
    }
}

#[inline(always)]
fn load_pointer<M: Memory>(at: *const u8, offset: u32) -> *const u8 {
    M::load::<Pointer>(at, offset).0
}

/// A raw pointer that implements `Default`, for [`Memory::load`].
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Pointer(pub *const u8);

impl Default for Pointer {
    fn default() -> Self {
        Pointer(core::ptr::null())
    }
}

#[inline(always)]
pub fn bpf_ktime() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// True if the current task is a kernel thread or the idle task.
#[inline(always)]
pub fn kernel_thread() -> bool {
    const PF_IDLE: u32 = 0x2;
    const PF_KTHREAD: u32 = 0x0020_0000;
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let flags: u32 = Probed::load(task as *const u8, field!(offsets.task_flags));
    flags & (PF_IDLE | PF_KTHREAD) != 0
}

/// `skb->_skb_refdst` holds the dst's address with a flag in its lowest bit.
#[inline(always)]
fn destination(event: *mut DropEvent, refdst: u64, netns: &mut u32) -> u8 {
    let dst = refdst & !1;
    let (mut input, mut ifindex) = (0u64, 0u32);
    if dst != 0 {
        // One copy for both fields, because its cost hardly depends on the size. The field for the headers serves as buffer, because
        // the stack has 512 bytes.
        let scratch = address_of!(event.head);
        copy(scratch, DST_BYTES, dst);
        // SAFETY: the agent checked that both fields lie within the bytes that were copied.
        let word = |offset: u32| unsafe { core::ptr::read_volatile(scratch.add(offset as usize).cast::<u64>()) };
        input = word(field!(offsets.dst_input));
        let dev = word(field!(offsets.dst_dev)) as *const u8;
        if !dev.is_null() {
            ifindex = Probed::load(dev, field!(offsets.dev_ifindex));
            if *netns == 0 {
                *netns = self::netns::<Probed>(dev, field!(offsets.dev_net));
            }
        }
    }
    set!(event.dst_input = input);
    set!(event.out_ifindex = ifindex);
    if dst == 0 { 0 } else { flags::DST }
}
