use super::*;
use crate::model::packet::ConntrackTuple as PacketTuple;

const CLIENT: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 2));
const SERVER: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 3));

/// A packet from the server's port 80 to the client's port 40000, the direction that is easy to get wrong.
fn from_server(protocol: u8, flags: Option<u8>) -> Packet {
    Packet {
        time: 1,
        headers: Headers {
            source: SERVER,
            destination: CLIENT,
            protocol,
            source_port: Some(80),
            destination_port: Some(40000),
            tcp_flags: flags,
            icmp: None,
            sctp_chunk: None,
            quoted: None,
            fragment: false,
            length: 60,
            payload_offset: 40,
        },
        length: 60,
        segments: 1,
        conntrack: None,
        untracked: false,
    }
}

fn without_tc(packet: &Packet) -> Opener {
    opener(packet, |_| false)
}

fn conntrack(packet: &Packet, original: (std::net::IpAddr, u16), other: (std::net::IpAddr, u16)) -> Conntrack {
    let tuple = |from: (std::net::IpAddr, u16), to: (std::net::IpAddr, u16)| PacketTuple {
        source: from.0,
        destination: to.0,
        source_port: from.1,
        destination_port: to.1,
        protocol: packet.headers.protocol,
    };
    Conntrack {
        original: tuple(original, other),
        reply: tuple(other, original),
        dst_nat: false,
        seen_reply: false,
        is_reply: false,
        related: false,
    }
}

#[test]
fn tcp_flags_decide_without_conntrack() {
    for (flags, want) in [
        (SYN, Opener::Source),
        (SYN | 0xc0, Opener::Source),
        (SYN | ACK, Opener::Destination),
        (ACK, Opener::Unknown),
        (ACK | 8, Opener::Unknown),
        (ACK | 1, Opener::Unknown),
        (RST, Opener::Unknown),
        (RST | ACK, Opener::Unknown),
        (0, Opener::Unknown),
    ] {
        assert_eq!(without_tc(&from_server(TCP, Some(flags))), want, "{flags:#x}");
    }
}

#[test]
fn the_tc_hook_knows_more_than_a_segment_in_the_middle() {
    let packet = from_server(TCP, Some(ACK));
    let opened = ConnectionTuple { client: (CLIENT, 40000), protocol: TCP, server: (SERVER, 80) };
    assert_eq!(opener(&packet, |tuple| *tuple == opened), Opener::Destination);
    assert_eq!(opener(&packet, |tuple| *tuple == opened.flipped()), Opener::Source);
}

#[test]
fn udp_goes_by_ports() {
    assert_eq!(without_tc(&from_server(UDP, None)), Opener::Unknown);
    let mut packet = from_server(UDP, None);
    (packet.headers.source_port, packet.headers.destination_port) = (Some(40000), Some(53));
    assert_eq!(without_tc(&packet), Opener::Source);
    (packet.headers.source_port, packet.headers.destination_port) = (Some(53), Some(5353));
    assert_eq!(without_tc(&packet), Opener::Unknown, "clients use ports from 1024 on");
    // Both are a client's, or both a server's: nothing suggests an answer.
    (packet.headers.source_port, packet.headers.destination_port) = (Some(40000), Some(50000));
    assert_eq!(without_tc(&packet), Opener::Source);
    (packet.headers.source_port, packet.headers.destination_port) = (Some(500), Some(500));
    assert_eq!(without_tc(&packet), Opener::Source);
}

/// Conntrack makes an entry of the first packet that it sees, whoever opened the connection.
#[test]
fn conntrack_is_no_evidence_where_it_picked_the_connection_up_from_this_packet() {
    for (protocol, flags) in [(TCP, Some(ACK)), (TCP, Some(RST)), (UDP, None)] {
        let mut packet = from_server(protocol, flags);
        packet.conntrack = Some(conntrack(&packet, (SERVER, 80), (CLIENT, 40000)));
        assert_eq!(without_tc(&packet), Opener::Unknown, "{protocol} {flags:?}");
        // Packets of both directions change nothing: the entry stays as it was made.
        packet.conntrack.as_mut().unwrap().seen_reply = true;
        assert_eq!(without_tc(&packet), Opener::Unknown, "{protocol} {flags:?}");
        // An entry that the client's packet made is evidence, and so is a translated destination.
        packet.conntrack.as_mut().unwrap().dst_nat = true;
        assert_eq!(without_tc(&packet), Opener::Conntrack, "{protocol} {flags:?}");
        let of_client = conntrack(&packet, (CLIENT, 40000), (SERVER, 80));
        packet.conntrack = Some(Conntrack { is_reply: true, ..of_client });
        assert_eq!(without_tc(&packet), Opener::Conntrack, "{protocol} {flags:?}");
    }
    let mut reply = from_server(TCP, Some(SYN | ACK));
    reply.conntrack = Some(Conntrack { is_reply: true, ..conntrack(&reply, (CLIENT, 40000), (SERVER, 80)) });
    assert_eq!(without_tc(&reply), Opener::Conntrack);
}

#[test]
fn an_icmp_error_is_of_the_connection_that_it_quotes() {
    let mut error = from_server(ICMP, None);
    error.headers.icmp = Some((3, 3));
    (error.headers.source_port, error.headers.destination_port) = (None, None);
    assert_eq!(without_tc(&error), Opener::Unknown, "nothing is quoted");
    let quoted = |protocol, source_port, destination_port| PacketTuple {
        source: CLIENT,
        destination: SERVER,
        source_port,
        destination_port,
        protocol,
    };
    error.headers.quoted = Some(quoted(UDP, 40000, 53));
    assert_eq!(without_tc(&error), Opener::Source);
    error.headers.quoted = Some(quoted(UDP, 53, 40000));
    assert_eq!(without_tc(&error), Opener::Unknown);
    error.headers.quoted = Some(quoted(TCP, 40000, 80));
    assert_eq!(without_tc(&error), Opener::Unknown, "the quotation has no flags");
    let opened = ConnectionTuple { client: (CLIENT, 40000), protocol: TCP, server: (SERVER, 80) };
    assert_eq!(opener(&error, |tuple| *tuple == opened), Opener::Source);
}

#[test]
fn icmp_and_sctp_go_by_type() {
    for (protocol, kind, want) in [
        (ICMP, 8, Opener::Source),
        (ICMP, 0, Opener::Destination),
        (ICMP, 14, Opener::Destination),
        (ICMPV6, 128, Opener::Source),
        (ICMPV6, 129, Opener::Destination),
        (ICMPV6, 135, Opener::Source),
    ] {
        let mut packet = from_server(protocol, None);
        packet.headers.icmp = Some((kind, 0));
        (packet.headers.source_port, packet.headers.destination_port) = (None, None);
        assert_eq!(without_tc(&packet), want, "{protocol} type {kind}");
    }
    for (chunk, want) in [(1, Opener::Source), (2, Opener::Destination), (0, Opener::Unknown), (6, Opener::Unknown)] {
        let mut packet = from_server(SCTP, None);
        packet.headers.sctp_chunk = Some(chunk);
        assert_eq!(without_tc(&packet), want, "chunk {chunk}");
    }
}
