//! Turns a kernel record into a packet. Pure and total: the bytes are untrusted input, every input has a result, and none panics.

pub mod conntrack;
pub mod dns;
pub mod headers;

use netpol_trace_common::{DropEvent, HEAD_LEN, flags};

use crate::model::packet::{Headers, Packet, PacketError};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Decodes the packet of one kernel record.
pub fn decode(event: &DropEvent) -> Result<Packet, PacketError> {
    if event.flags & flags::NO_HEAD != 0 {
        return Err(PacketError::Truncated);
    }
    if !matches!(u16::from_be(event.protocol), ETHERTYPE_IPV4 | ETHERTYPE_IPV6) {
        return Err(PacketError::NotIp);
    }
    // The bytes beyond the skb's linear part are not this packet's.
    let linear = event.tail.saturating_sub(u32::from(event.network_header)) as usize;
    let head = event.head.get(..linear.min(HEAD_LEN)).unwrap_or_default();
    let headers = headers::parse(head)?;

    // skb->len counts from skb->data, which is at L2, L3 or L4 depending on where the kernel dropped it.
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

/// `gso_segs` where the kernel has set it, else the payload divided by `gso_size`.
fn segments(event: &DropEvent, headers: &Headers, length: u32) -> u32 {
    match (event.gso_size, event.gso_segs) {
        (0, _) => 1,
        (_, segs @ 1..) => u32::from(segs),
        (size, 0) => length.saturating_sub(headers.payload_offset).div_ceil(u32::from(size)).max(1),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

    use netpol_trace_common::{CT_WORDS, NO_REASON};
    use proptest::prelude::*;

    use super::*;

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
    fn bytes_beyond_the_linear_part_are_not_read() {
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
