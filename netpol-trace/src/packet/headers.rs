//! Parses IP and transport headers, as far as the copied bytes have them. Pure and total: never panics.

use etherparse::{LaxNetSlice, LaxSlicedPacket};

use crate::model::packet::{ConntrackTuple, Headers, ICMP, ICMPV6, PacketError, SCTP, TCP, UDP, is_icmp_error};

/// Parses from the first byte of the IP header. The slice may end anywhere after the fixed IP header.
pub fn parse(head: &[u8]) -> Result<Headers, PacketError> {
    let packet = LaxSlicedPacket::from_ip(head).map_err(|_| PacketError::Truncated)?;
    let net = packet.net.as_ref().ok_or(PacketError::NotIp)?;
    let (source, destination, length) = match net {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), u32::from(header.total_len()))
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), 40 + u32::from(header.payload_length()))
        }
        LaxNetSlice::Arp(_) => return Err(PacketError::NotIp),
    };
    let payload = net.ip_payload_ref().ok_or(PacketError::Truncated)?;
    let protocol = payload.ip_number.0;
    let transport = payload.payload;
    let mut headers = Headers {
        source,
        destination,
        protocol,
        source_port: None,
        destination_port: None,
        tcp_flags: None,
        icmp: None,
        sctp_chunk: None,
        quoted: None,
        fragment: fragment_offset(head) > 0,
        length,
        payload_offset: (head.len() - transport.len()) as u32,
    };
    if headers.fragment {
        return Ok(headers);
    }
    let word = |at: usize| Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?));
    match protocol {
        // The ports are in the first 4 bytes, so a header that ends after them still gives its ports.
        TCP | UDP | SCTP => {
            (headers.source_port, headers.destination_port) = (word(0), word(2));
            match protocol {
                TCP => headers.tcp_flags = transport.get(13).copied(),
                SCTP => headers.sctp_chunk = transport.get(12).copied(),
                _ => {}
            }
            let length = match protocol {
                TCP => transport.get(12).map_or(20, |byte| u32::from(byte >> 4) * 4),
                UDP => 8,
                _ => 12,
            };
            headers.payload_offset += length;
        }
        ICMP | ICMPV6 => {
            headers.icmp = transport.first().copied().zip(transport.get(1).copied());
            if headers.icmp.is_some_and(|(kind, _)| is_icmp_error(protocol, kind)) {
                headers.quoted = transport.get(8..).and_then(quoted);
            }
        }
        _ => {}
    }
    Ok(headers)
}

/// Returns the tuple of the packet that an ICMP error quotes. No error quotes another error, so this reads one level only.
fn quoted(head: &[u8]) -> Option<ConntrackTuple> {
    let packet = LaxSlicedPacket::from_ip(head).ok()?;
    let (source, destination) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => return None,
    };
    let payload = packet.net.as_ref()?.ip_payload_ref()?;
    let protocol = payload.ip_number.0;
    if !matches!(protocol, TCP | UDP | SCTP) || fragment_offset(head) > 0 {
        return None;
    }
    let port = |at: usize| Some(u16::from_be_bytes(payload.payload.get(at..at + 2)?.try_into().ok()?));
    Some(ConntrackTuple { source, destination, source_port: port(0)?, destination_port: port(2)?, protocol })
}

/// Offset of a fragment in bytes, 0 for whole packets and first fragments.
fn fragment_offset(head: &[u8]) -> u16 {
    match head.first().map(|byte| byte >> 4) {
        Some(4) => head.get(6..8).map_or(0, |b| (u16::from_be_bytes([b[0], b[1]]) & 0x1fff) * 8),
        Some(6) => ipv6_fragment_offset(head).unwrap_or(0),
        _ => 0,
    }
}

/// Walks IPv6 extension headers (RFC 8200, 4.1) up to the fragment header.
fn ipv6_fragment_offset(head: &[u8]) -> Option<u16> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let (mut next, mut at) = (*head.get(6)?, 40usize);
    // Each step advances by 8 bytes or more, so the length of the slice bounds the loop.
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
        next = *head.get(at)?;
        at += (usize::from(*head.get(at + 1)?) + 1) * 8;
    }
    let offset = head.get(at + 2..at + 4).filter(|_| next == FRAGMENT)?;
    Some(u16::from_be_bytes([offset[0], offset[1]]) & 0xfff8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 64];
        bytes.extend("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        bytes.extend("fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        // hop-by-hop, then destination options, then UDP 5353 to 53.
        let mut rest = vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
        rest.extend([0x14, 0xe9, 0, 53, 0, 8, 0, 0]);
        let headers = parse(&ipv6(0, &rest)).unwrap();
        assert_eq!((headers.protocol, headers.source_port, headers.destination_port), (UDP, Some(5353), Some(53)));
        assert!(!headers.fragment);
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let first = ipv6(44, &[17, 0, 0, 1, 0, 0, 0, 7, 0x14, 0xe9, 0, 53, 0, 8, 0, 0]);
        let later = ipv6(44, &[17, 0, 0x05, 0xa9, 0, 0, 0, 7, 0x14, 0xe9, 0, 53, 0, 8, 0, 0]);
        let (first, later) = (parse(&first).unwrap(), parse(&later).unwrap());
        assert_eq!((first.fragment, first.destination_port), (false, Some(53)));
        assert_eq!((later.fragment, later.destination_port, later.protocol), (true, None, UDP));

        let mut v4 = vec![0x45, 0, 0, 28, 0, 1, 0x20, 0xb9, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        v4.extend([0x14, 0xe9, 0, 53, 0, 8, 0, 0]);
        assert!(parse(&v4).unwrap().fragment);
    }

    #[test]
    fn sctp_and_icmp() {
        let mut sctp = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 132, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        sctp.extend([0x0b, 0xb8, 0x0f, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse(&sctp).unwrap().destination_port, Some(4000));
        let mut icmp = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        icmp.extend([8, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(parse(&icmp).unwrap().icmp, Some((8, 0)));
        assert_eq!(parse(&ipv6(58, &[128, 0, 0, 0])).unwrap().icmp, Some((128, 0)));
    }

    #[test]
    fn a_cut_header_is_an_error_and_a_cut_transport_is_not() {
        assert_eq!(parse(&[0x45, 0, 0]), Err(PacketError::Truncated));
        assert_eq!(parse(&[]), Err(PacketError::Truncated));
        let syn = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80];
        let headers = parse(&syn).unwrap();
        assert_eq!((headers.destination_port, headers.tcp_flags), (Some(80), None));
    }
}
