//! The drop that an aggregation key describes: for a count whose first packet an earlier agent read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_trace_common::aggregate::{AggregateCount, AggregateKey, FRAGMENT};
use netpol_trace_common::flags;

use crate::kernel::drop::RawSite;
use crate::model::packet::{Conntrack, ConntrackTuple, Headers, ICMP, ICMPV6, Packet, SCTP, TCP, UDP};

/// First of the reply values of `enum ip_conntrack_info`.
const CTINFO_IS_REPLY: u8 = 3;
const CTINFO_ESTABLISHED: [u8; 2] = [0, 3];
const CTINFO_RELATED: [u8; 2] = [1, 4];

/// The site, as far as it is in the key: not the route and the device's name.
pub(super) fn site(key: &AggregateKey, has_conntrack: bool) -> RawSite {
    RawSite {
        reason: key.reason(),
        location: key.location(),
        dst_input: 0,
        flags: key.flags() | if has_conntrack { flags::CONNTRACK } else { 0 },
        at_link_layer: false,
        ifindex: key.ifindex(),
        iif: key.iif(),
        out_ifindex: 0,
        netns: key.netns(),
        device: [0; 2],
    }
}

/// A packet with the headers of the key, and of the mean length of those that were counted.
pub(super) fn packet(key: &AggregateKey, count: &AggregateCount) -> Packet {
    let length = u32::from(u16::try_from(count.bytes / count.count.max(1)).unwrap_or(u16::MAX));
    let [source, destination] = key.addresses().map(|bytes| address(key, bytes));
    let protocol = key.protocol();
    let fragment = key.kind() & FRAGMENT != 0;
    let (mut source_port, mut destination_port, mut tcp_flags, mut icmp) = (None, None, None, None);
    match protocol {
        _ if fragment => {}
        TCP | UDP | SCTP => {
            [source_port, destination_port] = key.ports().map(|port| Some(u16::from_be(port)));
            tcp_flags = (protocol == TCP).then(|| key.tcp_flags());
        }
        ICMP | ICMPV6 => {
            let [kind, code] = key.ports()[0].to_ne_bytes();
            icmp = Some((kind, code));
        }
        _ => {}
    }
    let transport = match protocol {
        _ if fragment => 0,
        TCP => 20,
        UDP => 8,
        SCTP => 12,
        _ => 0,
    };
    let headers = Headers {
        source,
        destination,
        protocol,
        source_port,
        destination_port,
        tcp_flags,
        icmp,
        sctp_chunk: None,
        quoted: None,
        fragment,
        length,
        payload_offset: transport + if key.is_v4() { 20 } else { 40 },
    };
    Packet { time: count.first, headers, length, segments: 1, conntrack: conntrack(key), untracked: false }
}

/// The connection, as far as it is in the key: its original direction, translated to the packet's addresses.
fn conntrack(key: &AggregateKey) -> Option<Conntrack> {
    let [client, requested] = key.original_addresses();
    if client == [0; 16] {
        return None;
    }
    let [client, requested] = [client, requested].map(|bytes| address(key, bytes));
    let [client_port, requested_port] = key.original_ports().map(u16::from_be);
    // A reply goes from the server, any other packet to it.
    let is_reply = key.ctinfo() >= CTINFO_IS_REPLY;
    let server = if is_reply { 0 } else { 1 };
    let (server, server_port) = (address(key, key.addresses()[server]), u16::from_be(key.ports()[server]));
    let protocol = key.protocol();
    let tuple = |source, source_port, destination, destination_port| ConntrackTuple {
        source,
        destination,
        source_port,
        destination_port,
        protocol,
    };
    Some(Conntrack {
        original: tuple(client, client_port, requested, requested_port),
        reply: tuple(server, server_port, client, client_port),
        dst_nat: (requested, requested_port) != (server, server_port),
        seen_reply: CTINFO_ESTABLISHED.contains(&key.ctinfo()),
        is_reply,
        related: CTINFO_RELATED.contains(&key.ctinfo()),
    })
}

fn address(key: &AggregateKey, bytes: [u8; 16]) -> IpAddr {
    match bytes {
        [a, b, c, d, ..] if key.is_v4() => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use netpol_trace_common::aggregate::{V4, V6, shift};

    use super::*;
    use crate::packet;
    use crate::packet::tests::syn;

    fn word_4(ports: [u16; 2], original: [u16; 2]) -> u64 {
        let [a, b, c, d] = [ports[0], ports[1], original[0], original[1]].map(|port| u64::from(port.to_be()));
        a | b << 16 | c << 32 | d << 48
    }

    fn addresses(source: [u8; 4], destination: [u8; 4]) -> u64 {
        let [a, b, c, d] = source;
        let [e, f, g, h] = destination;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// The key that the programs make of the packet of `syn`, through a service at 10.9.0.1:8080.
    fn key(protocol: u8, kind: u8, ctinfo: u8) -> AggregateKey {
        let mut key = AggregateKey::default();
        key.words[0] = 8 | 2 << 32;
        key.words[1] = 77;
        key.words[2] = 2 | 1 << 32;
        key.words[3] = u64::from(protocol)
            | 2 << shift::TCP_FLAGS
            | u64::from(ctinfo) << shift::CTINFO
            | u64::from(kind) << shift::KIND
            | u64::from(flags::REJECTED) << shift::FLAGS;
        key.words[4] = word_4([40000, 80], [40000, 8080]);
        key.words[5] = addresses([10, 0, 0, 1], [10, 0, 0, 2]);
        key.words[6] = addresses([10, 0, 0, 1], [10, 9, 0, 1]);
        key
    }

    const COUNT: AggregateCount = AggregateCount { count: 3, bytes: 120, more_segments: 0, first: 1, last: 5 };

    #[test]
    fn the_packet_of_a_key_has_the_headers_that_were_counted() {
        let counted = packet::decode(&syn()).unwrap();
        let described = super::packet(&key(TCP, V4, 0), &COUNT);
        assert_eq!(described.headers, counted.headers);
        assert_eq!((described.time, described.length, described.segments), (1, 40, 1));
        let fragment = super::packet(&key(TCP, V4 | FRAGMENT, 0), &COUNT).headers;
        assert_eq!((fragment.fragment, fragment.destination_port, fragment.tcp_flags), (true, None, None));
    }

    #[test]
    fn icmp_has_type_and_code() {
        let mut key = key(ICMP, V4, 7);
        key.words[4] = u64::from(u16::from_ne_bytes([3, 13])) | 99 << 16;
        let headers = super::packet(&key, &COUNT).headers;
        assert_eq!((headers.icmp, headers.source_port), (Some((3, 13)), None));
    }

    #[test]
    fn ipv6_addresses_have_two_words() {
        let mut key = key(UDP, V6, 0);
        let source: Ipv6Addr = "fd00::1".parse().unwrap();
        for (word, bytes) in key.words[5..].iter_mut().zip(source.octets().chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap());
        }
        assert_eq!(super::packet(&key, &COUNT).headers.source, IpAddr::from(source));
    }

    #[test]
    fn the_connection_is_known_in_both_directions() {
        let connection = super::packet(&key(TCP, V4, 2), &COUNT).conntrack.unwrap();
        assert_eq!(
            (connection.original.destination, connection.original.destination_port),
            ([10, 9, 0, 1].into(), 8080)
        );
        assert_eq!((connection.reply.source, connection.reply.source_port), ([10, 0, 0, 2].into(), 80));
        assert!(connection.dst_nat && !connection.is_reply && !connection.related);
        assert!(super::packet(&key(TCP, V4, 1), &COUNT).conntrack.unwrap().related);
        let reply = super::packet(&key(TCP, V4, 3), &COUNT).conntrack.unwrap();
        // The key's packet goes from 10.0.0.1, which in a reply is the server.
        assert!(reply.is_reply && reply.seen_reply);
        assert_eq!(reply.reply.source, IpAddr::from([10, 0, 0, 1]));
        let mut untranslated = key(TCP, V4, 2);
        untranslated.words[4] = word_4([40000, 80], [40000, 80]);
        untranslated.words[6] = untranslated.words[5];
        assert!(!super::packet(&untranslated, &COUNT).conntrack.unwrap().dst_nat);
    }

    #[test]
    fn the_site_is_that_of_the_key() {
        let site = site(&key(TCP, V4, 0), true);
        assert_eq!((site.reason, site.location, site.ifindex, site.iif, site.netns), (8, 77, 2, 2, 1));
        assert!(site.has(flags::REJECTED) && site.has_conntrack() && !site.has(flags::DEVICE));
    }
}
