//! One dropped packet: its headers, and the connection that conntrack has for it.

use std::net::IpAddr;

use super::{Family, Text};

/// IP protocol numbers (IANA).
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// One dropped packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// CLOCK_MONOTONIC, ns.
    pub time: u64,
    pub headers: Headers,
    /// L3 length in bytes.
    pub length: u32,
    /// Packets on the wire: more than 1 where segmentation offload made one skb of several.
    pub segments: u32,
    pub conntrack: Option<Conntrack>,
    /// A rule exempted the packet from conntrack.
    pub untracked: bool,
}

/// The packets that one event of the kernel programs stands for: one packet, or a count of packets of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketCount {
    /// The packet of the event is one more packet. Otherwise it is only an example of those counted.
    pub first: bool,
    /// Counted packets, their L3 bytes, and the number of packets that they would be on the wire.
    pub count: u64,
    pub bytes: u64,
    pub segments: u64,
    /// CLOCK_MONOTONIC of the last packet, ns.
    pub last: u64,
    /// What they have in common.
    pub granularity: Granularity,
}

/// The ports that packets counted together have in common. They always have addresses, protocol and drop site in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Both ports: the packets are of one flow.
    Flow,
    /// The destination's port only.
    AnySourcePort,
    AnyPorts,
}

impl PacketCount {
    /// One packet.
    pub const ONE: PacketCount =
        PacketCount { first: true, count: 0, bytes: 0, segments: 0, last: 0, granularity: Granularity::Flow };

    /// Returns the number of packets.
    pub fn packets(&self) -> u64 {
        u64::from(self.first) + self.count
    }

    /// Returns the L3 bytes of all packets. `packet` is the packet of the event.
    pub fn bytes(&self, packet: &Packet) -> u64 {
        if self.first { self.bytes + u64::from(packet.length) } else { self.bytes }
    }

    pub fn segments(&self, packet: &Packet) -> u64 {
        if self.first { self.segments + u64::from(packet.segments) } else { self.segments }
    }
}

/// Why header bytes could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("not IP")]
    NotIp,
    #[error("the header is missing or truncated")]
    Truncated,
}

impl PacketError {
    /// For metrics.
    pub fn kind(self) -> &'static str {
        match self {
            PacketError::NotIp => "not_ip",
            PacketError::Truncated => "truncated",
        }
    }
}

impl Packet {
    pub fn family(&self) -> Family {
        match self.headers.source {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }
}

/// Returns true if an ICMP or ICMPv6 message of this type is an error about another packet, which it quotes.
pub fn is_icmp_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        ICMPV6 => (1..=4).contains(&kind),
        _ => false,
    }
}

/// Returns the name of an IP protocol in records.
pub fn transport_name(protocol: u8) -> Text {
    match protocol {
        TCP => "tcp".into(),
        UDP => "udp".into(),
        SCTP => "sctp".into(),
        ICMP => "icmp".into(),
        ICMPV6 => "ipv6-icmp".into(),
        number => number.to_string().into(),
    }
}

/// Returns the number of a transport in a record; 255 (reserved by IANA) for an unknown name.
pub fn transport_number(name: &str) -> u8 {
    match name {
        "tcp" => TCP,
        "udp" => UDP,
        "sctp" => SCTP,
        "icmp" => ICMP,
        "ipv6-icmp" => ICMPV6,
        number => number.parse().unwrap_or(255),
    }
}

/// The fields of a packet's headers that a record or a verdict uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The IP protocol after all extension headers.
    pub protocol: u8,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// The byte of flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32.
    pub tcp_flags: Option<u8>,
    /// Type and code.
    pub icmp: Option<(u8, u8)>,
    /// Type of the first SCTP chunk.
    pub sctp_chunk: Option<u8>,
    /// The tuple of the packet that an ICMP error quotes, where its ports are readable.
    pub quoted: Option<ConntrackTuple>,
    /// A fragment other than the first: it has no transport header.
    pub fragment: bool,
    /// L3 length in bytes according to the header.
    pub length: u32,
    /// Bytes from the network header to the transport's payload, as far as the headers are known.
    pub payload_offset: u32,
}

/// TCP flag bits and their names, in the order of records.
const TCP_FLAGS: [(u8, &str); 6] = [(1, "fin"), (2, "syn"), (4, "rst"), (8, "psh"), (16, "ack"), (32, "urg")];

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

impl Headers {
    pub fn tcp_flag_names(&self) -> impl Iterator<Item = &'static str> {
        let flags = self.tcp_flags.unwrap_or(0);
        TCP_FLAGS.iter().filter(move |(bit, _)| flags & bit != 0).map(|(_, name)| *name)
    }

    /// Returns true for a TCP segment that opens a connection: SYN without ACK or RST.
    pub fn opens(&self) -> bool {
        self.tcp_flags.is_some_and(|flags| flags & (SYN | ACK | RST) == SYN)
    }
}

/// A conntrack entry as of the drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    /// The direction of the opener, with the addresses before translation: to the service's address.
    pub original: ConntrackTuple,
    /// The direction of the replies: from the backend.
    pub reply: ConntrackTuple,
    /// The destination was translated (a service).
    pub dst_nat: bool,
    pub seen_reply: bool,
    /// The packet goes against the connection's direction.
    pub is_reply: bool,
    /// The packet is an ICMP error about the connection.
    pub related: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConntrackTuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// 0 for protocols without ports; for ICMP the identifier.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}
