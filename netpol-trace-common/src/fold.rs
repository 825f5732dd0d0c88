//! What the drop program and the agent share about repeated packets: the first of a flow is sent, later ones are counted.
//!
//! Two sets of maps take turns. The program counts in one; the agent turns to the other, waits until no program can still be
//! running that saw the old one, and empties that at rest: no packet falls between.

/// Flows in each of the two maps.
pub const MAX_FLOWS: u32 = 16 * 1024;
/// Entries of each of the two maps for what found no room there, without the source's port.
pub const MAX_COARSE: u32 = 2 * 1024;

/// What packets have in common that are counted together. Everything that a record says of a packet and that differs between
/// packets of a flow is in here, or a record with a count would say it of all.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FoldKey {
    /// Addresses in network order; IPv4's are the first four octets.
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// Conntrack's original direction: before NAT. Zeros without conntrack.
    pub original_source: [u32; 4],
    pub original_destination: [u32; 4],
    /// The first four octets of the transport header, where the ports are; for ICMP type, code and identifier.
    pub ports: [u16; 2],
    pub original_ports: [u16; 2],
    pub reason: u32,
    /// The code address that freed the packet: low bits, high bits.
    pub location: [u32; 2],
    pub ifindex: u32,
    pub iif: u32,
    pub netns: u32,
    pub protocol: u8,
    /// Of TCP: SYN, ACK, RST and FIN; they tell an attempt from an answer.
    pub tcp_flags: u8,
    /// Low bits of `skb->_nfct`.
    pub ctinfo: u8,
    /// [`NOT_FOLDED`], [`V4`] or [`V6`], with [`FRAGMENT`] and [`COARSE`].
    pub kind: u8,
    /// [`crate::flags::REJECTED`] and [`crate::flags::KERNEL_THREAD`].
    pub flags: u8,
    pub pad: [u8; 3],
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

/// Which maps are in use.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FoldState {
    /// 0 or 1: the set in use.
    pub active: u32,
    /// The map of flows in use has no room: the program looks at the coarser one first.
    pub full: u32,
}

/// How far the agent has come with what the programs told, in packets; kept in a pinned map for the agent after it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carry {
    /// Read from the ring, and taken out of the maps.
    pub emitted: u64,
    pub folded: u64,
    /// Of the kernel's losses, declared.
    pub lost: u64,
    /// In lines that were written.
    pub written: u64,
    /// Without a line, or declared lost.
    pub left_out: u64,
}

layout!(Carry, 40);
layout!(FoldKey, 104, source @ 0, ports @ 64, reason @ 72, netns @ 92, protocol @ 96, kind @ 99, flags @ 100);
layout!(Fold, 40, count @ 0, last @ 32);
layout!(FoldState, 8);
