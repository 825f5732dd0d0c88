//! What the drop program and the agent share about repeated packets: the first of a flow is sent, later ones are counted.
//!
//! Two sets of maps take turns. The program counts in one; the agent turns to the other, waits until no program can still be
//! running that saw the old one, and empties that at rest: no packet falls between.
//!
//! Each set has, from fine to coarse: flows of each CPU ([`FastSlot`]), flows of all, flows of any source port, and pairs of
//! addresses of any port. What finds no room in one is counted in the next. A flow that several CPUs see may be counted by each,
//! and sent by each once: the agent adds that up.

/// Flows that the CPUs count by themselves, all CPUs together, and those of each at least.
pub const FAST_SLOTS: u32 = 16 * 1024;
const LEAST_SLOTS: u32 = 64;
/// Flows in each of the two maps that all CPUs share.
pub const MAX_FLOWS: u32 = 4 * 1024;
/// The same where no CPU counts by itself.
pub const MAX_FLOWS_ALONE: u32 = 16 * 1024;
/// Entries of each of the two maps for what found no room there, without the source's port.
pub const MAX_COARSE: u32 = 2 * 1024;
/// Entries of each of the two maps for what found no room there either, without ports.
pub const MAX_WIDE: u32 = 1024;

/// Words of a [`FoldKey`].
pub const WORDS: usize = 13;
/// The words that an IPv4 key uses; the others are zero.
pub const WORDS_V4: usize = 7;

/// What packets have in common that are counted together. Everything that a record says of a packet and that differs between
/// packets of a flow is in here, or a record with a count would say it of all.
///
/// Words, since the programs write and compare it whole words at a time: a word that was written in parts costs more to read
/// back than all the rest. From the lowest bits on:
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
pub struct FoldKey {
    pub words: [u64; WORDS],
}

/// Where the parts of a key's word 3 begin, in bits.
pub mod shift {
    pub const TCP_FLAGS: u32 = 8;
    pub const CTINFO: u32 = 16;
    pub const KIND: u32 = 24;
    pub const FLAGS: u32 = 32;
}

impl FoldKey {
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

    /// Of TCP: SYN, ACK, RST and FIN; they tell an attempt from an answer.
    pub fn tcp_flags(&self) -> u8 {
        (self.words[3] >> shift::TCP_FLAGS) as u8
    }

    /// Low bits of `skb->_nfct`.
    pub fn ctinfo(&self) -> u8 {
        (self.words[3] >> shift::CTINFO) as u8
    }

    /// [`NOT_FOLDED`], [`V4`] or [`V6`], with [`FRAGMENT`], [`COARSE`] and [`WIDE`].
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

    /// Addresses of source and destination; IPv4's are the first four octets.
    pub fn addresses(&self) -> [[u8; 16]; 2] {
        self.pair(0)
    }

    /// The same before NAT.
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

/// Values and bits of [`FoldKey::kind`].
pub const NOT_FOLDED: u8 = 0;
pub const V4: u8 = 4;
pub const V6: u8 = 6;
pub const FAMILY: u8 = 0x0f;
/// Not the first one.
pub const FRAGMENT: u8 = 0x10;
/// The ports of the source are left out.
pub const COARSE: u8 = 0x40;
/// All ports are left out.
pub const WIDE: u8 = 0x80;

/// TCP flags that are part of the key.
pub const TCP_FLAGS: u8 = 0x17;

/// What was counted under a key.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fold {
    /// Packets after the one that was sent.
    pub count: u64,
    /// L3 octets of them.
    pub bytes: u64,
    /// Packets on the wire beyond `count`, where segmentation offload made one skb of several.
    pub more_segments: u64,
    /// CLOCK_MONOTONIC in ns, of the first and the last of them; to the kernel's tick.
    pub first: u64,
    pub last: u64,
}

impl Fold {
    /// Adds what was counted elsewhere under the same key.
    pub fn add(&mut self, more: &Fold) {
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

/// A flow that a CPU counts by itself, without a look-up in a shared map and without atomic adds. They are taken one after the other,
/// and not where a hash says: memory that is next to what was written last is nearer.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FastSlot {
    pub key: FoldKey,
    pub fold: Fold,
}

/// Slots of each CPU: a power of two.
pub const fn slots(cpus: u32) -> u32 {
    match FAST_SLOTS.checked_div(cpus) {
        Some(each) if each < LEAST_SLOTS => LEAST_SLOTS,
        Some(each) => 1 << each.ilog2(),
        None => FAST_SLOTS,
    }
}

/// Where a hash's low bits find its slot: that many words of a CPU for each slot. A word is 0, or has the whole hash in its upper half
/// and in the lower one the number of the slot on this CPU, from 1 on.
pub const PLACES: u32 = 2;

/// Words of [`Known`].
pub const KNOWN_WORDS: usize = 2048;

/// A bit for each hash of a flow's key, set when the flow is in the map of flows: without it the map need not be asked. More bits
/// than flows, so that most new flows find none. Of several CPUs at once one may take another's bit away: then the insertion tells.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub words: [u64; KNOWN_WORDS],
}

/// Which maps are in use.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FoldState {
    /// 0 or 1: the set in use.
    pub active: u32,
    /// Which of its maps have no room: [`FULL_FLOWS`], [`FULL_COARSE`]. The program goes on to the next at once.
    pub full: u32,
}

/// Bits of [`FoldState::full`].
pub const FULL_FLOWS: u32 = 1;
pub const FULL_COARSE: u32 = 2;

/// How far the agent has come with what the programs told, in packets; kept in a pinned map for the agent after it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carry {
    /// Read from the ring, and taken out of the maps.
    pub emitted: u64,
    pub aggregated: u64,
    /// Of the kernel's losses, declared.
    pub lost: u64,
    /// In lines that were written.
    pub written: u64,
    /// Without a line, or declared lost.
    pub left_out: u64,
}

layout!(Carry, 40);
layout!(FoldKey, 104, words @ 0);
layout!(Fold, 40, count @ 0, last @ 32);
layout!(FastSlot, 144, fold @ 104);
layout!(FoldState, 8);
layout!(Known, 16 * 1024);
const _: () = assert!(KNOWN_WORDS.is_power_of_two() && KNOWN_WORDS * 64 >= 4 * MAX_FLOWS_ALONE as usize);
const _: () = assert!(slots(1) == FAST_SLOTS && slots(6) == 2048 && slots(4096) == LEAST_SLOTS);
