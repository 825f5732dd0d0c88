//! Packets that no socket of the kernel would send, for raw sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

const TCP: u8 = 6;

/// A TCP header without options or data.
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend_from_slice(&from.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    // Sequence and acknowledgment numbers, which do not matter.
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
    // Header of 5 words, flags, a window of 1024, checksum and urgent pointer.
    segment.extend_from_slice(&[5 << 4, flags, 4, 0, 0, 0, 0, 0]);
    let sum = checksum(&[&pseudo_header(from.ip(), to.ip(), TCP, segment.len()), &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An IPv4 packet with any `source` and payload. The kernel writes the header's checksum.
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend_from_slice(&((header + payload.len()) as u16).to_be_bytes());
    // An id that is not 0, or the kernel would choose one.
    packet.extend_from_slice(&[0x12, 0x34]);
    packet.extend_from_slice(&fragment.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(options);
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 packet. `next` is the type of the header that `payload` begins with.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[next, 64]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(payload);
    packet
}

/// A UDP datagram of `payload` with any source, from port 40000 on; its checksum is left out, as IPv4 allows.
pub fn ipv4_udp(source: IpAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, to.ip()) else { return Vec::new() };
    ipv4(source, destination, 17, &[], 0, &udp(40000, to.port(), payload))
}

/// A UDP header without a checksum, and its payload.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = from.to_be_bytes().to_vec();
    datagram.extend_from_slice(&to.to_be_bytes());
    datagram.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    datagram
}

/// True if a packet from a raw TCP socket is a RST from `from` to `to`. IPv4 raw sockets deliver the IP header, IPv6 ones don't.
pub fn is_reset(packet: &[u8], from: SocketAddr, to: SocketAddr) -> bool {
    let header = if from.is_ipv4() { packet.first().map_or(0, |first| usize::from(first & 0xf) * 4) } else { 0 };
    let Some(segment) = packet.get(header..).filter(|segment| segment.len() >= 20) else { return false };
    segment[..2] == from.port().to_be_bytes() && segment[2..4] == to.port().to_be_bytes() && segment[13] & RST != 0
}

/// An SCTP packet with an INIT chunk (RFC 9260, 3.3.2).
pub fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::with_capacity(32);
    packet.extend_from_slice(&from.to_be_bytes());
    packet.extend_from_slice(&to.to_be_bytes());
    // Verification tag 0 (the rule for INIT), checksum.
    packet.extend_from_slice(&[0; 8]);
    // INIT, no flags, 20 bytes: initiate tag, receiver window, streams out and in, first TSN.
    packet.extend_from_slice(&[1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// An echo request: type 8 of ICMP, 128 of ICMPv6 (whose checksum the kernel writes).
pub fn echo_request(kind: u8, identifier: u16, sequence: u16) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend_from_slice(&identifier.to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(b"netpol-trace lab");
    let sum = checksum(&[&packet]);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(40);
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
        }
    }
    header.extend_from_slice(&(length as u32).to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, protocol]);
    header
}

/// The Internet checksum (RFC 1071) of parts that each have an even length, the last excepted.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC-32C (Castagnoli), bit by bit: SCTP's checksum.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_checksum_makes_the_sum_all_ones() {
        let (from, to) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let segment = tcp(from, to, SYN);
        assert_eq!(checksum(&[&pseudo_header(from.ip(), to.ip(), TCP, segment.len()), &segment]), 0);
    }
}
