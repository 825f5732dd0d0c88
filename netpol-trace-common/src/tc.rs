//! What the tc programs and the agent share: connections at the pods' host-side interfaces, and DNS answers to pods.

/// Bytes of a DNS answer that are copied: RFC 1035's limit for UDP. Of a longer answer (EDNS) the agent reads the records that fit.
pub const DNS_BYTES: usize = 512;

/// A connection at one interface. `pod` is the endpoint behind the interface, whichever endpoint opened the connection: both
/// directions have the same key.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowKey {
    /// IPv4 addresses as IPv4-mapped IPv6 (`::ffff:a.b.c.d`), in network order.
    pub pod: [u32; 4],
    pub remote: [u32; 4],
    /// Ports in network order.
    pub pod_port: u16,
    pub remote_port: u16,
    pub ifindex: u32,
    /// IP protocol number.
    pub protocol: u32,
}

/// State of a connection. The program removes it when a TCP or SCTP connection is answered; the agent removes it when a UDP
/// connection is idle.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowState {
    /// CLOCK_MONOTONIC, ns, of the first packet.
    pub opened: u64,
    /// Packets from the opener. Above [`MANY`] they are added once a tick. Not atomic: the number only shows whether the opener still
    /// sends.
    pub packets: u32,
    /// UDP: packets and ICMP errors from the other endpoint.
    pub replies: u32,
    /// [`FROM_POD`] or [`TO_POD`]: the direction of the packet that opened the connection.
    pub direction: u32,
    pub pad: u32,
}

/// Entries of [`Recent`] for each CPU.
pub const RECENT: u32 = 64;

/// A UDP connection of which a CPU saw a packet in the current tick of the kernel: until the next tick its packets need no look-up in
/// the map of connections. Used only for connections that were answered or have more than [`MANY`] packets.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recent {
    pub tick: u64,
    pub key: FlowKey,
    /// [`FlowState::direction`].
    pub direction: u32,
    /// Packets of the opener that are not yet added to the map's entry. They are lost when another connection takes this entry.
    pub packets: u32,
    pub pad: u32,
}

/// Unanswered packets that are counted one by one.
pub const MANY: u32 = 64;

/// The pod opened the connection: its first packet entered at the interface (the pod's egress).
pub const FROM_POD: u8 = 0;
/// The connection was opened towards the pod: its first packet left by the interface (the pod's ingress).
pub const TO_POD: u8 = 1;

/// Kinds of a [`FlowEvent`].
pub mod event {
    /// A connection was opened and its entry is in the map.
    pub const OPENED: u8 = 1;
    /// A TCP RST or SCTP ABORT answered an open connection.
    pub const RESET: u8 = 2;
    /// An ICMP error answered it: `icmp` has type and code.
    pub const ICMP: u8 = 3;
    /// A DNS answer to a pod: the record is a [`super::DnsEvent`].
    pub const DNS: u8 = 4;
}

/// A change of a connection. Every record in the ring begins with one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEvent {
    /// CLOCK_MONOTONIC, ns.
    pub time: u64,
    pub key: FlowKey,
    /// One of [`event`].
    pub event: u8,
    /// [`FROM_POD`] or [`TO_POD`]: the direction of the packet that caused the event.
    pub direction: u8,
    /// Type and code of an ICMP error.
    pub icmp: [u8; 2],
    /// L3 length of the packet in bytes.
    pub length: u32,
    pub pad: u32,
}

/// A DNS answer that was delivered to the pod that had asked.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DnsEvent {
    pub head: FlowEvent,
    /// Bytes of `payload` that are set; the rest is not initialised.
    pub length: u32,
    pub pad: u32,
    pub payload: [u8; DNS_BYTES],
}

/// Accounting of the tc hook, for each CPU, in connections: `opened = reported + lost_ring + lost_full + lost_insert`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Packets that opened a connection.
    pub opened: u64,
    /// Connections reported to the agent.
    pub reported: u64,
    /// Not reported: the ring was full.
    pub lost_ring: u64,
    /// Not reported: the map was full.
    pub lost_full: u64,
    /// Not reported: the map refused the entry for another reason.
    pub lost_insert: u64,
    /// DNS answers and refusals.
    pub answers: u64,
    /// DNS answers and refusals for which the ring had no room.
    pub answers_lost: u64,
    /// Packets whose headers could not be read: too many extension headers, or truncated.
    pub unread: u64,
}

layout!(FlowKey, 44, pod @ 0, remote @ 16, pod_port @ 32, remote_port @ 34, ifindex @ 36, protocol @ 40);
layout!(FlowState, 24, opened @ 0, packets @ 8, replies @ 12, direction @ 16);
layout!(Recent, 64, tick @ 0, key @ 8, direction @ 52, packets @ 56);
layout!(FlowEvent, 64, time @ 0, key @ 8, event @ 52, direction @ 53, icmp @ 54, length @ 56);
layout!(DnsEvent, 584, head @ 0, length @ 64, payload @ 72);
layout!(FlowCounters, 64, opened @ 0, reported @ 8, lost_ring @ 16, lost_full @ 24, lost_insert @ 32, answers @ 40, unread @ 56);
