//! Decodes the kernel's copy of a packet's conntrack entry: the tuple before NAT and the tuple of replies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_trace_common::{CT_REPLY_OFFSET, CT_STATUS_OFFSET, CT_WORDS};

use crate::model::packet::{Conntrack, ConntrackTuple};

/// `IPS_DST_NAT` of enum ip_conntrack_status.
const STATUS_DST_NAT: u64 = 0x20;
const STATUS_SEEN_REPLY: u64 = 0x2;
/// First of the reply values of enum ip_conntrack_info.
const CTINFO_IS_REPLY: u8 = 3;
/// `IP_CT_ESTABLISHED` and its reply form: conntrack has seen packets of both directions.
const CTINFO_ESTABLISHED: [u8; 2] = [0, 3];
/// `IP_CT_RELATED` and its reply form.
const CTINFO_RELATED: [u8; 2] = [1, 4];

/// Decodes two copies of `struct nf_conntrack_tuple` and the status; `None` for an empty copy.
pub fn parse(words: &[u64; CT_WORDS], ctinfo: u8) -> Option<Conntrack> {
    let mut bytes = [0u8; CT_WORDS * 8];
    for (target, word) in bytes.chunks_exact_mut(8).zip(words) {
        target.copy_from_slice(&word.to_ne_bytes());
    }
    let status = u64::from_ne_bytes(bytes.get(CT_STATUS_OFFSET..CT_STATUS_OFFSET + 8)?.try_into().ok()?);
    Some(Conntrack {
        original: tuple(bytes.get(..40)?)?,
        reply: tuple(bytes.get(CT_REPLY_OFFSET..CT_REPLY_OFFSET + 40)?)?,
        dst_nat: status & STATUS_DST_NAT != 0,
        seen_reply: status & STATUS_SEEN_REPLY != 0 || CTINFO_ESTABLISHED.contains(&ctinfo),
        is_reply: ctinfo >= CTINFO_IS_REPLY,
        related: CTINFO_RELATED.contains(&ctinfo),
    })
}

/// `src { u3[16], u[2], l3num[2] } dst { u3[16], u[2], protonum, dir }`, addresses and ports in network order.
fn tuple(bytes: &[u8]) -> Option<ConntrackTuple> {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    let l3num = u16::from_ne_bytes(bytes.get(18..20)?.try_into().ok()?);
    let address = |at: usize| -> Option<IpAddr> {
        match l3num {
            AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?).into()),
            AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?).into()),
            _ => None,
        }
    };
    let port = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    Some(ConntrackTuple {
        source: address(0)?,
        destination: address(20)?,
        source_port: port(16)?,
        destination_port: port(36)?,
        protocol: *bytes.get(38)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, source: [u8; 4], sport: u16, destination: [u8; 4], dport: u16) {
        bytes[at..at + 4].copy_from_slice(&source);
        bytes[at + 16..at + 18].copy_from_slice(&sport.to_be_bytes());
        bytes[at + 18..at + 20].copy_from_slice(&2u16.to_ne_bytes());
        bytes[at + 20..at + 24].copy_from_slice(&destination);
        bytes[at + 36..at + 38].copy_from_slice(&dport.to_be_bytes());
        bytes[at + 38] = 6;
    }

    #[test]
    fn a_service_connection() {
        let mut bytes = [0u8; CT_WORDS * 8];
        put(&mut bytes, 0, [10, 7, 1, 2], 40000, [10, 99, 0, 1], 80);
        put(&mut bytes, CT_REPLY_OFFSET, [10, 7, 3, 2], 8080, [10, 7, 1, 2], 40000);
        bytes[CT_STATUS_OFFSET..].copy_from_slice(&(STATUS_DST_NAT | 8).to_ne_bytes());
        let mut words = [0u64; CT_WORDS];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().unwrap());
        }
        let ct = parse(&words, 2).unwrap();
        assert_eq!(ct.original.destination, IpAddr::from([10, 99, 0, 1]));
        assert_eq!((ct.reply.source, ct.reply.source_port), (IpAddr::from([10, 7, 3, 2]), 8080));
        assert!(ct.dst_nat && !ct.seen_reply && !ct.is_reply);
        assert!(parse(&words, 3).unwrap().is_reply);
        assert_eq!(parse(&[0; CT_WORDS], 0), None, "an empty copy is no connection");
    }
}
