//! Layout of the maps in which the drop program counts repeated packets: it sends the first packet of a flow and counts later ones.
//!
//! There are two sets of maps (double buffer). The program counts in one set. The agent swaps the sets, waits until no program that
//! saw the old set can still be running, and then empties the old set: no packet is missed between the two.
//!
//! Each set has, from fine to coarse: flows of each CPU ([`FastSlot`]), flows of all CPUs, flows without their source port, and pairs
//! of addresses without ports. When a flow finds no room in one map, the program counts it in the next coarser one. Several CPUs may
//! each send and count the same flow; the agent adds their counts.

/// Flows that CPUs count in slots of their own: of all CPUs together.
pub const FAST_SLOTS: u32 = 16 * 1024;
/// The least number of slots that one CPU has.
const MIN_SLOTS: u32 = 64;
/// Flows in the map that all CPUs share, of each set.
pub const MAX_FLOWS: u32 = 4 * 1024;
/// The same on kernels where no CPU has slots of its own.
pub const MAX_FLOWS_WITHOUT_SLOTS: u32 = 16 * 1024;
/// Entries of the map without source ports, of each set.
pub const MAX_COARSE: u32 = 2 * 1024;
/// Entries of the map without ports, of each set.
pub const MAX_WIDE: u32 = 1024;

/// Words of an [`AggregateKey`].
pub const WORDS: usize = 13;
/// Words that an IPv4 key uses; the others are zero.
pub const WORDS_V4: usize = 7;

/// What packets that are counted together have in common. Every field of a record that can differ between packets of a flow is part
/// of the key, because a record with a count states it for all of them.
///
/// The programs write and compare the key in whole words: reading back a word that was written in parts stalls the CPU for longer
/// than all the rest takes. From the lowest bits on:
///
/// | word | has |
/// |---|---|
/// | 0 | reason (32), `skb->dev`'s index (32) |
/// | 1 | the code address that freed the packet |
/// | 2 | `skb_iif` (32), network namespace (32) |
/// | 3 | protocol (8), TCP flags (8), low bits of `_nfct` (8), kind (8), flags (8) |
/// | 4 | the two ports, for ICMP type and code, and identifier (16 each); before NAT (16 each) |
/// | 5, 6 | IPv4: source, destination (32 each); before NAT |
/// | 5 to 12 | IPv6: source, destination; before NAT |
///
/// Addresses and ports are as they stand in memory, in network order. Those before NAT are conntrack's original direction, zeros
/// without conntrack.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AggregateKey {
    pub words: [u64; WORDS],
}

/// Bit offsets of the parts of a key's word 3.
pub mod shift {
    pub const TCP_FLAGS: u32 = 8;
    pub const CTINFO: u32 = 16;
    pub const KIND: u32 = 24;
    pub const FLAGS: u32 = 32;
}

impl AggregateKey {
    pub fn reason(&self) -> u32 {
        self.words[0] as u32
    }

    pub fn ifindex(&self) -> u32 {
        (self.words[0] >> 32) as u32
    }

    pub fn location(&self) -> u64 {
        self.words[1]
    }

    pub fn iif(&self) -> u32 {
        self.words[2] as u32
    }

    pub fn netns(&self) -> u32 {
        (self.words[2] >> 32) as u32
    }

    pub fn protocol(&self) -> u8 {
        self.words[3] as u8
    }

    /// SYN, ACK, RST and FIN of TCP: they distinguish an attempt to connect from a reply.
    pub fn tcp_flags(&self) -> u8 {
        (self.words[3] >> shift::TCP_FLAGS) as u8
    }

    /// Low bits of `skb->_nfct`: `enum ip_conntrack_info`.
    pub fn ctinfo(&self) -> u8 {
        (self.words[3] >> shift::CTINFO) as u8
    }

    /// [`NOT_AGGREGATED`], [`V4`] or [`V6`], with [`FRAGMENT`], [`COARSE`] and [`WIDE`].
    #[inline(always)]
    pub fn kind(&self) -> u8 {
        (self.words[3] >> shift::KIND) as u8
    }

    /// [`crate::flags::REJECTED`] and [`crate::flags::KERNEL_THREAD`].
    pub fn flags(&self) -> u8 {
        (self.words[3] >> shift::FLAGS) as u8
    }

    /// In network order.
    pub fn ports(&self) -> [u16; 2] {
        [self.words[4] as u16, (self.words[4] >> 16) as u16]
    }

    pub fn original_ports(&self) -> [u16; 2] {
        [(self.words[4] >> 32) as u16, (self.words[4] >> 48) as u16]
    }

    pub fn is_v4(&self) -> bool {
        self.kind() & FAMILY == V4
    }

    /// Addresses of source and destination; an IPv4 address is in the first four bytes.
    pub fn addresses(&self) -> [[u8; 16]; 2] {
        self.pair(0)
    }

    /// Addresses of source and destination before NAT; zeros without conntrack.
    pub fn original_addresses(&self) -> [[u8; 16]; 2] {
        self.pair(1)
    }

    fn pair(&self, which: usize) -> [[u8; 16]; 2] {
        let mut pair = [[0; 16]; 2];
        if self.is_v4() {
            let both = self.words[5 + which].to_ne_bytes();
            pair[0][..4].copy_from_slice(&both[..4]);
            pair[1][..4].copy_from_slice(&both[4..]);
        } else {
            for (address, words) in pair.iter_mut().zip(self.words[5 + 4 * which..].chunks_exact(2)) {
                address[..8].copy_from_slice(&words[0].to_ne_bytes());
                address[8..].copy_from_slice(&words[1].to_ne_bytes());
            }
        }
        pair
    }
}

/// Values and bits of [`AggregateKey::kind`].
pub const NOT_AGGREGATED: u8 = 0;
pub const V4: u8 = 4;
pub const V6: u8 = 6;
pub const FAMILY: u8 = 0x0f;
/// A fragment other than the first: it has no ports.
pub const FRAGMENT: u8 = 0x10;
/// The key lacks the source's port.
pub const COARSE: u8 = 0x40;
/// The key lacks both ports.
pub const WIDE: u8 = 0x80;

/// TCP flags that are part of the key.
pub const TCP_FLAGS: u8 = 0x17;

/// The packets that were counted under one key.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AggregateCount {
    /// Packets after the one that was sent.
    pub count: u64,
    /// L3 bytes of these packets.
    pub bytes: u64,
    /// Packets on the wire beyond `count`: segmentation offload makes one skb of several.
    pub more_segments: u64,
    /// CLOCK_MONOTONIC in ns of the first and the last packet, rounded to the kernel's tick.
    pub first: u64,
    pub last: u64,
}

impl AggregateCount {
    /// Adds another count under the same key.
    pub fn add(&mut self, more: &AggregateCount) {
        if more.count == 0 {
            return;
        }
        self.first = if self.count == 0 { more.first } else { self.first.min(more.first) };
        self.last = self.last.max(more.last);
        self.count += more.count;
        self.bytes += more.bytes;
        self.more_segments += more.more_segments;
    }
}

/// A flow that one CPU counts by itself, without a look-up in a shared map and without atomic adds. A CPU uses its slots in order and
/// not by hash: neighbouring memory is more likely to be in the CPU's cache.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FastSlot {
    pub key: AggregateKey,
    pub count: AggregateCount,
}

/// Slots of each CPU, a power of two.
pub const fn slots(cpus: u32) -> u32 {
    match FAST_SLOTS.checked_div(cpus) {
        Some(each) if each < MIN_SLOTS => MIN_SLOTS,
        Some(each) => 1 << each.ilog2(),
        None => FAST_SLOTS,
    }
}

/// Words of a CPU's hash index for each of its slots. The low bits of a flow's hash select a word. A word is 0, or has the whole hash
/// in its upper half and the number of the slot on this CPU, from 1 on, in its lower half.
pub const INDEX_WORDS_PER_SLOT: u32 = 2;

/// Words of a [`FlowBitmap`].
pub const BITMAP_WORDS: usize = 2048;

/// A bit for each hash of a flow's key, set when the flow is in the map of flows. A clear bit saves a look-up in that map. There are
/// more bits than flows, so that most new flows find a clear bit. CPUs that write one word at once may lose each other's bit; the
/// insertion into the map, which refuses a second entry, then finds the flow.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowBitmap {
    pub words: [u64; BITMAP_WORDS],
}

/// Which of the two sets of maps is in use.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AggregateState {
    /// 0 or 1: the set in use.
    pub active: u32,
    /// Which maps of the set have no room ([`FULL_FLOWS`], [`FULL_COARSE`]): the program skips to the next coarser map.
    pub full: u32,
}

/// Bits of [`AggregateState::full`].
pub const FULL_FLOWS: u32 = 1;
pub const FULL_COARSE: u32 = 2;

/// How far the agent has got with the packets that the programs reported. A pinned map keeps it for the next agent.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandoverPage {
    /// Packets of events read from the ring.
    pub emitted: u64,
    /// Packets of counts taken out of the maps.
    pub aggregated: u64,
    /// The kernel's losses that were declared.
    pub lost: u64,
    /// Packets of records that were written.
    pub written: u64,
    /// Packets that get no record, or whose loss is declared.
    pub left_out: u64,
}

layout!(HandoverPage, 40);
layout!(AggregateKey, 104, words @ 0);
layout!(AggregateCount, 40, count @ 0, last @ 32);
layout!(FastSlot, 144, count @ 104);
layout!(AggregateState, 8);
layout!(FlowBitmap, 16 * 1024);
const _: () = assert!(BITMAP_WORDS.is_power_of_two() && BITMAP_WORDS * 64 >= 4 * MAX_FLOWS_WITHOUT_SLOTS as usize);
const _: () = assert!(slots(1) == FAST_SLOTS && slots(6) == 2048 && slots(4096) == MIN_SLOTS);
