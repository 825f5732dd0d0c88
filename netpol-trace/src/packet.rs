//! Bytes to packets: pure, total, never panics. The bytes come from strangers.

pub mod conntrack;
pub mod headers;

use std::net::IpAddr;
use std::sync::Arc;

use netpol_trace_common::{DropEvent, HEAD_LEN, flags};

pub use conntrack::{Conntrack, Tuple};
pub use headers::Headers;

use crate::record::{Family, Hook, Mechanism, Text};

pub type Str = Arc<str>;

/// IP protocol numbers that are told apart (IANA).
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// What the kernel said of the drop besides the packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub reason: Option<Str>,
    pub location: Option<Str>,
    pub site: Site,
    pub device: Option<Str>,
    pub netns: Option<u32>,
    /// An ICMP error or a reset about the packet was sent right before it was freed.
    pub rejected: bool,
    pub answers: Answers,
}

/// Which answers of REJECT are seen on this kernel, each of them: a packet without one was not rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers {
    pub icmp: bool,
    pub icmp6: bool,
    /// TCP resets, of both families.
    pub reset: bool,
}

impl Answers {
    /// Whether REJECT would have answered such a packet, and the answer been seen.
    pub fn all_to(self, family: Family, headers: &Headers) -> bool {
        let error = match family {
            Family::Ipv4 => self.icmp,
            Family::Ipv6 => self.icmp6,
        };
        // It sends no reset for a reset, and nothing for a fragment.
        let is_reset = headers.tcp_flags.is_none_or(|flags| flags & headers::RST != 0);
        error && !headers.fragment && (headers.protocol != TCP || self.reset && !is_reset)
    }
}

/// What reason and location mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    pub mechanism: Mechanism,
    pub candidate: Candidate,
    pub hook: Option<Hook>,
}

/// Whether a policy may be behind a drop at such a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidate {
    Policy,
    /// A program that anybody may have attached: tc, XDP, cgroup.
    Maybe,
    /// The enforcer's queue has no listener.
    Outage,
    No,
    /// What healthy traffic does.
    Noise,
}

/// One dropped packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// CLOCK_MONOTONIC, ns.
    pub time: u64,
    pub headers: Headers,
    /// L3 length in octets.
    pub length: u32,
    /// Packets on the wire: more than 1 where segmentation offload made one skb of several.
    pub segments: u32,
    pub conntrack: Option<Conntrack>,
    /// Conntrack was told to leave the packet alone.
    pub untracked: bool,
}

/// What one word of the kernel stands for: a packet, or what was counted of packets like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeats {
    /// The packet that was read is one of those meant; else it is only their example.
    pub first: bool,
    /// Packets that were counted, their L3 octets, and what they would be on the wire.
    pub count: u64,
    pub bytes: u64,
    pub segments: u64,
    /// CLOCK_MONOTONIC of the last one, ns.
    pub last: u64,
    /// What they have in common.
    pub same: Sameness,
}

/// What packets that were counted together have in common, besides addresses, protocol and all that the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sameness {
    /// Both ports.
    Flow,
    /// The destination's port.
    AnySourcePort,
    AnyPorts,
}

impl Repeats {
    /// One packet.
    pub const ONE: Repeats = Repeats { first: true, count: 0, bytes: 0, segments: 0, last: 0, same: Sameness::Flow };

    /// How many packets there were.
    pub fn packets(&self) -> u64 {
        u64::from(self.first) + self.count
    }

    /// Their L3 octets, `packet` being the one that was read.
    pub fn bytes(&self, packet: &Packet) -> u64 {
        if self.first { self.bytes + u64::from(packet.length) } else { self.bytes }
    }

    pub fn segments(&self, packet: &Packet) -> u64 {
        if self.first { self.segments + u64::from(packet.segments) } else { self.segments }
    }
}

/// Why a record has no packet: it isn't IP, or its header couldn't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("not IP")]
    NotIp,
    #[error("the header is missing or cut short")]
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

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Reads the packet of one kernel record.
pub fn decode(event: &DropEvent) -> Result<Packet, PacketError> {
    if event.flags & flags::NO_HEAD != 0 {
        return Err(PacketError::Truncated);
    }
    if !matches!(u16::from_be(event.protocol), ETHERTYPE_IPV4 | ETHERTYPE_IPV6) {
        return Err(PacketError::NotIp);
    }
    // What lies beyond the linear part is not this packet's.
    let linear = event.tail.saturating_sub(u32::from(event.network_header)) as usize;
    let head = event.head.get(..linear.min(HEAD_LEN)).unwrap_or_default();
    let headers = headers::parse(head)?;

    // skb->len counts from skb->data, which is at L2, L3 or L4 depending on where the packet died.
    let above = i64::from(event.data_offset) - i64::from(event.network_header);
    let length = u32::try_from(i64::from(event.len) + above).unwrap_or(headers.length);
    let conntrack =
        (event.flags & flags::CONNTRACK != 0).then(|| conntrack::parse(&event.conntrack, event.ctinfo)).flatten();
    Ok(Packet {
        time: event.time,
        length,
        segments: segments(event, &headers, length),
        headers,
        conntrack,
        untracked: event.flags & flags::UNTRACKED != 0,
    })
}

/// `gso_segs` where the stack filled it in, else what `gso_size` makes of the payload.
fn segments(event: &DropEvent, headers: &Headers, length: u32) -> u32 {
    match (event.gso_size, event.gso_segs) {
        (0, _) => 1,
        (_, segs @ 1..) => u32::from(segs),
        (size, 0) => length.saturating_sub(headers.payload_offset).div_ceil(u32::from(size)).max(1),
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

/// The record's name of an IP protocol.
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

/// The number behind a record's transport; 255 (reserved by IANA) for what is none.
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use netpol_trace_common::{CT_WORDS, NO_REASON};
    use proptest::prelude::*;

    /// A record with an IPv4 SYN from 10.0.0.1:40000 to 10.0.0.2:80.
    pub(crate) fn syn() -> DropEvent {
        let mut head = [0; HEAD_LEN];
        head[..20].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        head[20..40].copy_from_slice(&[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        DropEvent {
            time: 1,
            location: 0,
            dst_input: 0,
            conntrack: [0; CT_WORDS],
            reason: NO_REASON,
            len: 40,
            data_offset: 64,
            tail: 104,
            network_header: 64,
            mac_header: 50,
            transport_header: 84,
            protocol: ETHERTYPE_IPV4.to_be(),
            ifindex: 2,
            iif: 2,
            out_ifindex: 3,
            netns: 1,
            mark: 0,
            gso_segs: 0,
            gso_size: 0,
            ctinfo: 0,
            flags: flags::DEVICE,
            pad: [0; 6],
            key: Default::default(),
            device: [0; 2],
            head,
        }
    }

    #[test]
    fn a_syn() {
        let packet = decode(&syn()).unwrap();
        assert_eq!(packet.headers.source, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!((packet.headers.source_port, packet.headers.destination_port), (Some(40000), Some(80)));
        assert_eq!((packet.length, packet.segments), (40, 1));
        assert!(packet.headers.tcp_flag_names().eq(["syn"]));
    }

    #[test]
    fn the_length_is_l3s_wherever_data_points() {
        let at_l2 = DropEvent { data_offset: 50, len: 54, ..syn() };
        let at_l4 = DropEvent { data_offset: 84, len: 20, ..syn() };
        assert_eq!(decode(&at_l2).unwrap().length, 40);
        assert_eq!(decode(&at_l4).unwrap().length, 40);
    }

    #[test]
    fn offloaded_segments_count() {
        let filled = DropEvent { gso_size: 1448, gso_segs: 4, ..syn() };
        assert_eq!(decode(&filled).unwrap().segments, 4);
        let unfilled = DropEvent { gso_size: 1000, len: 40 + 2500, ..syn() };
        assert_eq!(decode(&unfilled).unwrap().segments, 3);
    }

    #[test]
    fn what_lies_beyond_the_linear_part_is_not_read() {
        assert_eq!(decode(&DropEvent { tail: 64 + 12, ..syn() }), Err(PacketError::Truncated));
        let ip_only = decode(&DropEvent { tail: 64 + 20, ..syn() }).unwrap();
        assert_eq!(ip_only.headers.destination_port, None);
    }

    proptest! {
        #[test]
        fn arbitrary_records_never_panic(
            head in proptest::collection::vec(any::<u8>(), HEAD_LEN),
            words in proptest::collection::vec(any::<u64>(), CT_WORDS),
            (len, data_offset, tail) in any::<(u32, u32, u32)>(),
            (network_header, gso_size, gso_segs) in any::<(u16, u16, u16)>(),
            (first, v6, ctinfo, bits) in any::<(u8, bool, u8, u8)>(),
        ) {
            let mut event = DropEvent {
                len, data_offset, tail, network_header, gso_size, gso_segs, ctinfo, flags: bits,
                protocol: if v6 { ETHERTYPE_IPV6.to_be() } else { ETHERTYPE_IPV4.to_be() },
                ..syn()
            };
            event.head.copy_from_slice(&head);
            event.head[0] = if v6 { 0x60 } else { 0x45 | first & 0x0f };
            event.conntrack.copy_from_slice(&words);
            if let Ok(packet) = decode(&event) {
                prop_assert!(packet.segments >= 1);
                prop_assert!(!packet.headers.fragment || packet.headers.source_port.is_none());
            }
        }
    }
}
