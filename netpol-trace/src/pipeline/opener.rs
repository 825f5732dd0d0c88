//! Decides who opened a packet's connection, before any policy is evaluated. Pure.
//!
//! NetworkPolicy is about the side that opens a connection; replies pass. The source of a packet is not always that side: enforcers at
//! the pods' interfaces also drop SYN-ACKs, segments in the middle of a connection, and late UDP answers. The evidence, best first:
//!
//! 1. conntrack's original tuple, unless conntrack picked the connection up from this very packet;
//! 2. the connections that the tc hook saw open;
//! 3. TCP flags, the SCTP chunk or the ICMP type;
//! 4. for UDP and the like, the ports: an answer goes from a server's port to an ephemeral port.
//!
//! An ICMP error belongs to the connection of the packet that it quotes.

use super::Pipeline;
use super::connections::ConnectionTuple;
use crate::model::packet::{self, ACK, Conntrack, Headers, ICMP, ICMPV6, Packet, RST, SCTP, SYN, TCP, UDP};

/// The lowest port that Linux gives to a client (`net.ipv4.ip_local_port_range`).
pub(super) const EPHEMERAL: u16 = 32768;

/// The lowest port that needs no privilege.
const RESERVED: u16 = 1024;
/// SCTP chunk types (RFC 9260, 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// Who opened the connection of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opener {
    /// Conntrack's original source.
    Conntrack,
    /// The source of the packet; of an ICMP error, the source of the quoted packet.
    Source,
    /// The destination of the packet, which is thus a reply; of an ICMP error, the destination of the quoted packet.
    Destination,
    /// The packet belongs to a connection that was opened earlier, and nothing shows by whom.
    Unknown,
}

impl Pipeline {
    pub(super) fn opener(&self, packet: &Packet) -> Opener {
        opener(packet, |tuple| self.flows.as_ref().is_some_and(|flows| flows.was_opened(tuple, packet.time)))
    }
}

/// Decides who opened the packet's connection. `was_opened` returns true if the tc hook saw this connection open in this direction.
fn opener(packet: &Packet, was_opened: impl Fn(&ConnectionTuple) -> bool) -> Opener {
    let headers = &packet.headers;
    if packet.conntrack.is_some_and(|conntrack| is_evidence(&conntrack, headers)) {
        return Opener::Conntrack;
    }
    let tuple = match headers.quoted {
        Some(quoted) => Some(ConnectionTuple::of_quoted(&quoted)),
        None => ConnectionTuple::of_headers(headers),
    };
    if let Some(tuple) = tuple {
        if was_opened(&tuple) {
            return Opener::Source;
        }
        if was_opened(&tuple.flipped()) {
            return Opener::Destination;
        }
    }
    if let Some(quoted) = headers.quoted {
        let answer = looks_like_answer(quoted.source_port, quoted.destination_port);
        return if quoted.protocol == UDP && !answer { Opener::Source } else { Opener::Unknown };
    }
    match headers.protocol {
        TCP => by_flags(headers),
        SCTP => by_chunk(headers),
        ICMP | ICMPV6 => by_icmp_type(headers),
        // A later fragment.
        UDP if headers.fragment => Opener::Unknown,
        _ => match headers.source_port.zip(headers.destination_port) {
            Some((source, destination)) if looks_like_answer(source, destination) => Opener::Unknown,
            _ => Opener::Source,
        },
    }
}

/// Returns true if the conntrack entry shows who opened the connection.
///
/// Conntrack makes an entry also of a segment in the middle of a connection that it does not know (`nf_conntrack_tcp_loose`), and of an answer
/// whose entry has expired. The original tuple is then that packet's, whoever opened the connection.
fn is_evidence(conntrack: &Conntrack, headers: &Headers) -> bool {
    if conntrack.original.protocol != headers.protocol {
        // An ICMP error has the entry of the connection that it is about.
        return conntrack.related && !is_backwards(conntrack);
    }
    if conntrack.seen_reply || conntrack.is_reply {
        return !is_backwards(conntrack) || headers.opens();
    }
    match headers.protocol {
        TCP => headers.opens() || headers.fragment || conntrack.dst_nat,
        SCTP => headers.sctp_chunk.is_none_or(|chunk| chunk == INIT) || conntrack.dst_nat,
        UDP => {
            conntrack.dst_nat || !looks_like_answer(conntrack.original.source_port, conntrack.original.destination_port)
        }
        _ => true,
    }
}

/// Returns true if an entry looks as if conntrack had picked the connection up from a packet of the server: the entry then names the server
/// as the opener for the rest of its life. A translated destination shows the client beyond doubt.
fn is_backwards(conntrack: &Conntrack) -> bool {
    let original = &conntrack.original;
    !conntrack.dst_nat
        && matches!(original.protocol, TCP | UDP)
        && looks_like_answer(original.source_port, original.destination_port)
}

fn by_flags(headers: &Headers) -> Opener {
    match headers.tcp_flags {
        _ if headers.opens() => Opener::Source,
        Some(flags) if flags & (SYN | ACK | RST) == SYN | ACK => Opener::Destination,
        _ => Opener::Unknown,
    }
}

/// INIT opens an association, INIT ACK answers (RFC 9260, 3.3).
fn by_chunk(headers: &Headers) -> Opener {
    match headers.sctp_chunk {
        // A count of the kernel has no chunk.
        Some(INIT) | None => Opener::Source,
        Some(INIT_ACK) => Opener::Destination,
        _ => Opener::Unknown,
    }
}

/// Echo replies, and the answers to ICMP's other questions.
fn by_icmp_type(headers: &Headers) -> Opener {
    match (headers.protocol, headers.icmp) {
        (ICMP, Some((0 | 14 | 16 | 18, _))) | (ICMPV6, Some((129, _))) => Opener::Destination,
        // An error without a readable quotation.
        (protocol, Some((kind, _))) if packet::is_icmp_error(protocol, kind) => Opener::Unknown,
        _ => Opener::Source,
    }
}

/// Returns true if a packet between these ports goes to a client's port from one that is not. Clients also use lower ports than the default
/// range, but hardly any below 1024.
pub(super) fn looks_like_answer(source: u16, destination: u16) -> bool {
    source < EPHEMERAL && destination >= EPHEMERAL || source < RESERVED && destination >= RESERVED
}

#[cfg(test)]
mod tests;
