//! Data that the eBPF programs and the agent exchange. Both sides compile this file, so that they agree on each layout; the asserts
//! at the end make sure that two compilers agree on it too.
//!
//! All fields are plain words in the machine's byte order, except packet bytes and conntrack tuples, which stay in network order as
//! the kernel holds them.
#![no_std]

macro_rules! layout {
    ($type:ty, $size:expr $(, $field:ident @ $offset:expr)* $(,)?) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        const _: () = assert!(core::mem::align_of::<$type>() <= 8);
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)*
    };
}

pub mod aggregate;
pub mod tc;

use aggregate::AggregateKey;

/// Bytes that are copied from the packet's network header on: enough for IPv6 with a few extension headers and a TCP header.
pub const HEAD_LEN: usize = 96;
/// Words of `struct nf_conn` from `tuplehash[0].tuple` up to and with `status`.
pub const CT_WORDS: usize = 13;
/// Offset in bytes between the two tuples of that copy: a tuple (40) and a list node (16).
pub const CT_REPLY_OFFSET: usize = 56;
/// Offset in bytes of `status` in that copy.
pub const CT_STATUS_OFFSET: usize = 96;
/// Bytes of `struct dst_entry` that the programs read; `dev` and `input` are among them.
pub const DST_BYTES: u32 = 64;
/// Slots of [`ReasonFilter`]'s bitmaps and of the per-reason counters. Linux 7.3 has about 130 reasons.
pub const REASONS: usize = 256;
/// The slot for reasons of subsystems (OVS, mac80211) and for any beyond the table.
pub const REASON_OTHER: u32 = REASONS as u32 - 1;
/// Code ranges in which a drop with an unspecific reason is recorded.
pub const LOCATIONS: usize = 32;
/// Call sites in modules whose drops the agent can make the programs ignore; a node has a few dozen.
pub const MAX_IGNORED_SITES: u32 = 1024;
/// `DropEvent::reason` on kernels before 5.17, which have none.
pub const NO_REASON: u32 = u32::MAX;

/// The record of one `kfree_skb`, built in the ring buffer's reservation.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DropEvent {
    /// CLOCK_MONOTONIC, ns.
    pub time: u64,
    /// Return address in the function that freed the packet.
    pub location: u64,
    /// `dst->input`, from which the hook follows; 0 without a dst.
    pub dst_input: u64,
    /// Copy of `struct nf_conn`, see [`CT_WORDS`]; all zero without [`flags::CONNTRACK`].
    pub conntrack: [u64; CT_WORDS],
    /// `enum skb_drop_reason`, or [`NO_REASON`].
    pub reason: u32,
    /// `skb->len`: bytes from `skb->data` on.
    pub len: u32,
    /// `skb->data - skb->head`.
    pub data_offset: u32,
    /// `skb->tail`, from `skb->head`: where the linear part ends.
    pub tail: u32,
    pub network_header: u16,
    pub mac_header: u16,
    pub transport_header: u16,
    /// `skb->protocol` (EtherType) in network order.
    pub protocol: u16,
    /// `skb->dev`'s index, 0 without a device.
    pub ifindex: u32,
    /// `skb->skb_iif`: the device that received the packet.
    pub iif: u32,
    /// Index of `dst->dev`.
    pub out_ifindex: u32,
    /// Inode number of the network namespace; 0 when no pointer leads to one.
    pub netns: u32,
    pub mark: u32,
    pub gso_segs: u16,
    pub gso_size: u16,
    /// Low bits of `skb->_nfct`: `enum ip_conntrack_info`.
    pub ctinfo: u8,
    pub flags: u8,
    pub pad: [u8; 6],
    /// The key under which later packets like this one are counted; its kind is [`aggregate::NOT_AGGREGATED`] if none will be.
    pub key: AggregateKey,
    /// `skb->dev->name`: 16 bytes, NUL-padded, in memory order.
    pub device: [u64; 2],
    pub head: [u8; HEAD_LEN],
}

/// Bits of [`DropEvent::flags`].
pub mod flags {
    pub const CONNTRACK: u8 = 1;
    pub const DST: u8 = 2;
    pub const DEVICE: u8 = 4;
    pub const SOCKET: u8 = 8;
    /// The packet's head could not be read.
    pub const NO_HEAD: u8 = 16;
    /// `skb->_nfct` is `IP_CT_UNTRACKED` (7): a rule excluded the packet from conntrack.
    pub const UNTRACKED: u8 = 32;
    /// The current task is a kernel thread. Set only for reasons that count by location.
    pub const KERNEL_THREAD: u8 = 64;
    /// The kernel sent an ICMP error or a reset about this packet right before it freed the packet.
    pub const REJECTED: u8 = 128;
}

/// Field offsets in bytes, from the running kernel's BTF. A field that the kernel lacks is [`ABSENT`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets {
    pub skb_len: u32,
    pub skb_tail: u32,
    pub skb_end: u32,
    /// `head`, and `data` right behind it.
    pub skb_head: u32,
    pub skb_network_header: u32,
    pub skb_mac_header: u32,
    pub skb_transport_header: u32,
    pub skb_protocol: u32,
    pub skb_mark: u32,
    pub skb_iif: u32,
    pub skb_dev: u32,
    pub skb_sk: u32,
    pub skb_nfct: u32,
    pub skb_refdst: u32,
    pub dev_ifindex: u32,
    pub dev_name: u32,
    pub dev_net: u32,
    pub net_inum: u32,
    pub sk_net: u32,
    pub dst_dev: u32,
    pub dst_input: u32,
    /// `nf_conn.tuplehash[0].tuple`.
    pub ct_tuple: u32,
    pub ct_net: u32,
    /// `gso_size`, and `gso_segs` right behind it.
    pub shinfo_gso_size: u32,
    /// `task_struct.flags`.
    pub task_flags: u32,
    pub skb_data_len: u32,
}

/// The offset of a field that this kernel doesn't have.
pub const ABSENT: u32 = u32::MAX;

/// Settings of the programs. The loader freezes them before it loads the programs, so that the verifier sees constants.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Arguments of the kfree_skb tracepoint: 2 (to 5.16), 3, or 4 (from 6.11).
    pub arguments: u32,
    /// Id of the OVS drop-reason subsystem, 0 when there is none.
    pub ovs_subsystem: u32,
    /// Not 0: the programs count repeated packets instead of sending each.
    pub aggregate: u32,
    /// Not 0: the kernel has no recursion protection for tracepoint programs (before 6.1), so a softirq can interrupt a run of the
    /// program and run it again on the same CPU.
    pub recursive: u32,
    /// Flows that each CPU counts in slots of its own, a power of two: see [`aggregate::slots`].
    pub slots: u32,
    pub pad: u32,
    pub filter: ReasonFilter,
    pub offsets: Offsets,
}

/// Drop reasons that are recorded, as bitmaps.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReasonFilter {
    /// Reasons that are recorded at every call site.
    pub anywhere: [u64; REASONS / 64],
    /// Reasons that are recorded at the call sites of [`Locations`].
    pub by_location: [u64; REASONS / 64],
    /// The union of both, with [`REASON_OTHER`] if a subsystem has reasons that are recorded: the first test.
    pub either: [u64; REASONS / 64],
}

impl ReasonFilter {
    /// True if `bits` has the bit of `reason`; false beyond the table.
    #[inline(always)]
    pub fn has(bits: &[u64; REASONS / 64], reason: u32) -> bool {
        // An array index that the verifier can follow without a panic branch.
        let word = (reason as usize / 64) & (REASONS / 64 - 1);
        (reason as usize) < REASONS && bits[word] >> (reason % 64) & 1 == 1
    }
}

/// A function's code: `start <= location < end`. An unused entry is empty.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CodeRange {
    pub start: u64,
    pub end: u64,
}

/// Kernel code that matters to the filter. The agent writes it at start and whenever a module was loaded.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Locations {
    /// Functions whose drops with an unspecific reason are recorded.
    pub ranges: [CodeRange; LOCATIONS],
    /// The kernel image. Code outside of it belongs to a module, which may have been loaded a moment ago.
    pub image: CodeRange,
}

/// The kernel's part of packet accounting, for each CPU, in packets: `matched = emitted + aggregated + lost_ring`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropCounters {
    /// Packets that passed the filter.
    pub matched: u64,
    /// Packets sent through the ring.
    pub emitted: u64,
    /// Packets counted in a map.
    pub aggregated: u64,
    /// Packets for which the ring had no room.
    pub lost_ring: u64,
}

/// State that each CPU keeps between two runs of the programs. The fields that every run reads come first, in one cache line.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerCpu {
    pub counters: DropCounters,
    /// Address of the packet about which the kernel sent an ICMP error or a reset last; 0 once the packet is freed.
    pub rejected: u64,
    /// When `rejected` was set: CLOCK_MONOTONIC, ns.
    pub rejected_at: u64,
    /// The kernel's tick (jiffies) at which the clock was read last, and its value: CLOCK_MONOTONIC, ns.
    pub tick: u64,
    pub time: u64,
    /// Every kfree_skb by its reason, recorded or not.
    pub seen: [u64; REASONS],
    /// The tick at which this CPU last woke the reader.
    pub woken: u64,
    /// Slots that this CPU uses in each of the two sets, see [`aggregate::FastSlot`].
    pub flows: [u64; 2],
    /// Fills up a cache line.
    pub pad: [u64; 5],
}

/// The kernel frees a rejected packet within this time, in ns. An older mark belongs to another packet at the same address.
pub const REJECT_NS: u64 = 100_000_000;

layout!(DropEvent, 400,
    time @ 0, location @ 8, dst_input @ 16, conntrack @ 24, reason @ 128, len @ 132, data_offset @ 136, tail @ 140,
    network_header @ 144, mac_header @ 146, transport_header @ 148, protocol @ 150, ifindex @ 152, iif @ 156,
    out_ifindex @ 160, netns @ 164, mark @ 168, gso_segs @ 172, gso_size @ 174, ctinfo @ 176, flags @ 177,
    key @ 184, device @ 288, head @ 304);
layout!(Offsets, 104, skb_len @ 0, skb_dev @ 40, dev_ifindex @ 56, dst_dev @ 76, ct_tuple @ 84, shinfo_gso_size @ 92, task_flags @ 96);
layout!(ReasonFilter, 96, anywhere @ 0, by_location @ 32, either @ 64);
layout!(Config, 224, arguments @ 0, ovs_subsystem @ 4, aggregate @ 8, recursive @ 12, slots @ 16, filter @ 24, offsets @ 120);
layout!(Locations, 528, image @ 512);
layout!(PerCpu, 2176, counters @ 0, rejected @ 32, rejected_at @ 40, tick @ 48, seen @ 64, woken @ 2112, flows @ 2120);
layout!(DropCounters, 32, matched @ 0, emitted @ 8, aggregated @ 16, lost_ring @ 24);
