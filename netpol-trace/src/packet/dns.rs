//! DNS answers to names of addresses: pure, total, never panics. The octets come from strangers.
//!
//! Read by hand because a copy may end in the middle of a long answer: the records before the cut count, and decoders
//! that want the whole message refuse it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an answer says of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerAddress {
    pub ip: IpAddr,
    /// Seconds for which it may be kept.
    pub ttl: u32,
}

/// A positive answer: the addresses of the name that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsAnswer {
    /// The name that was asked for, then what it is an alias of: lower case, ASCII, without the last dot.
    pub names: Vec<String>,
    pub addresses: Vec<AnswerAddress>,
}

/// Names and addresses kept of one answer.
const MAX_NAMES: usize = 4;
const MAX_ADDRESSES: usize = 32;
/// Records looked at: a message of 512 octets has at most 42 of them.
const MAX_RECORDS: usize = 64;
/// Compression pointers followed in one name, and octets of one name (RFC 1035, 2.3.4).
const MAX_POINTERS: usize = 8;
const MAX_NAME: usize = 255;

const HEADER: usize = 12;
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const IN: u16 = 1;

/// Reads an answer. `None` unless it is a successful response to one question for addresses. Records that are not
/// reached from the question through aliases are left out: nobody asked for them.
pub fn parse(message: &[u8]) -> Option<DnsAnswer> {
    let flags = word(message, 2)?;
    // A response to a standard query, without error.
    if flags >> 15 != 1 || flags >> 11 & 0xf != 0 || flags & 0xf != 0 || word(message, 4)? != 1 {
        return None;
    }
    let (asked, mut at) = name(message, HEADER)?;
    let kind = word(message, at)?;
    if !matches!(kind, A | AAAA) || word(message, at + 2)? != IN {
        return None;
    }
    at += 4;
    let mut answer = DnsAnswer { names: vec![text(&asked)], addresses: Vec::new() };
    // The names that records may be about by now; servers put an alias before what it stands for.
    let mut current = asked;
    for _ in 0..usize::from(word(message, 6)?).min(MAX_RECORDS) {
        let Some((record, next)) = record(message, at) else { break };
        at = next;
        if record.class != IN || record.owner != current {
            continue;
        }
        match record.kind {
            CNAME => {
                let Some((alias, _)) = name(message, record.data) else { break };
                if answer.names.len() < MAX_NAMES {
                    answer.names.push(text(&alias));
                }
                current = alias;
            }
            kind if kind == A || kind == AAAA => {
                let data = message.get(record.data..record.data + record.length)?;
                let ip = match (kind, data.len()) {
                    (A, 4) => <[u8; 4]>::try_from(data).ok().map(|octets| Ipv4Addr::from(octets).into()),
                    (AAAA, 16) => <[u8; 16]>::try_from(data).ok().map(|octets| Ipv6Addr::from(octets).into()),
                    _ => None,
                };
                if let Some(ip) = ip.filter(|_| answer.addresses.len() < MAX_ADDRESSES) {
                    answer.addresses.push(AnswerAddress { ip, ttl: record.ttl });
                }
            }
            _ => {}
        }
    }
    (!answer.addresses.is_empty()).then_some(answer)
}

struct ResourceRecord {
    owner: DomainName,
    kind: u16,
    class: u16,
    ttl: u32,
    /// Where its data is.
    data: usize,
    length: usize,
}

/// The labels of a name, lower case.
type DomainName = Vec<Vec<u8>>;

/// The record at `at` and where the next one begins; `None` where the message ends before its end.
fn record(message: &[u8], at: usize) -> Option<(ResourceRecord, usize)> {
    let (owner, at) = name(message, at)?;
    let (kind, class) = (word(message, at)?, word(message, at + 2)?);
    let ttl = u32::from(word(message, at + 4)?) << 16 | u32::from(word(message, at + 6)?);
    let length = usize::from(word(message, at + 8)?);
    let data = at + 10;
    message.get(data..data + length)?;
    Some((ResourceRecord { owner, kind, class, ttl, data, length }, data + length))
}

/// The name at `at`, and where what follows it begins.
fn name(message: &[u8], mut at: usize) -> Option<(DomainName, usize)> {
    let mut labels = DomainName::new();
    let (mut end, mut pointers, mut octets) = (None, 0, 0);
    loop {
        let length = usize::from(*message.get(at)?);
        match length >> 6 {
            0 if length == 0 => return Some((labels, end.unwrap_or(at + 1))),
            0 => {
                octets += length + 1;
                if octets > MAX_NAME {
                    return None;
                }
                labels.push(message.get(at + 1..at + 1 + length)?.to_ascii_lowercase());
                at += 1 + length;
            }
            // A pointer elsewhere in the message.
            3 => {
                pointers += 1;
                if pointers > MAX_POINTERS {
                    return None;
                }
                end.get_or_insert(at + 2);
                at = usize::from(word(message, at)? & 0x3fff);
            }
            _ => return None,
        }
    }
}

/// As RFC 1035 (5.1) writes a name: what is not a letter, digit, hyphen or underscore becomes `\DDD`, so that no octet of a
/// stranger's reaches a line or a terminal.
fn text(labels: &DomainName) -> String {
    let mut text = String::new();
    for (i, label) in labels.iter().enumerate() {
        if i > 0 {
            text.push('.');
        }
        for octet in label {
            match octet {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' | b'/' => text.push(char::from(*octet)),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
    }
    text
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
