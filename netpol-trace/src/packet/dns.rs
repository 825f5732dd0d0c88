//! Decodes DNS answers to addresses with their names. Pure and total: the bytes are untrusted input, and none panics.
//!
//! Own code because the copy of a long answer may be truncated: the records before its end count, and decoders that need
//! the whole message refuse it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One address of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerAddress {
    pub ip: IpAddr,
    /// Seconds for which it may be cached.
    pub ttl: u32,
}

/// A positive answer: the addresses of the queried name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsAnswer {
    /// The queried name, then the names that it is an alias of: lower case, ASCII, without the last dot.
    pub names: Vec<String>,
    pub addresses: Vec<AnswerAddress>,
}

/// Names and addresses kept of one answer.
const MAX_NAMES: usize = 4;
const MAX_ADDRESSES: usize = 32;
/// Records read: a message of 512 bytes has at most 42.
const MAX_RECORDS: usize = 64;
/// Compression pointers followed in one name, and bytes of one name (RFC 1035, 2.3.4).
const MAX_POINTERS: usize = 8;
const MAX_NAME: usize = 255;

const HEADER: usize = 12;
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const IN: u16 = 1;

/// Decodes an answer. `None` unless it is a successful response to one question for addresses. Records that aliases do not
/// connect with the question are left out: the client did not query them.
pub fn parse(message: &[u8]) -> Option<DnsAnswer> {
    let flags = word(message, 2)?;
    // A response to a standard query, without error.
    if flags >> 15 != 1 || flags >> 11 & 0xf != 0 || flags & 0xf != 0 || word(message, 4)? != 1 {
        return None;
    }
    let (question, mut at) = name(message, HEADER)?;
    let kind = word(message, at)?;
    if !matches!(kind, A | AAAA) || word(message, at + 2)? != IN {
        return None;
    }
    at += 4;
    let mut answer = DnsAnswer { names: vec![text(&question)], addresses: Vec::new() };
    // The name that the next record must have; servers put an alias before the records of its target.
    let mut current = question;
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
                    (A, 4) => <[u8; 4]>::try_from(data).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
                    (AAAA, 16) => <[u8; 16]>::try_from(data).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
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
    /// Offset of its data in the message.
    data: usize,
    length: usize,
}

/// The labels of a name, lower case.
type DomainName = Vec<Vec<u8>>;

/// The record at `at` and the offset of the next one; `None` where the message ends before the record does.
fn record(message: &[u8], at: usize) -> Option<(ResourceRecord, usize)> {
    let (owner, at) = name(message, at)?;
    let (kind, class) = (word(message, at)?, word(message, at + 2)?);
    let ttl = u32::from(word(message, at + 4)?) << 16 | u32::from(word(message, at + 6)?);
    let length = usize::from(word(message, at + 8)?);
    let data = at + 10;
    message.get(data..data + length)?;
    Some((ResourceRecord { owner, kind, class, ttl, data, length }, data + length))
}

/// The name at `at`, and the offset after it.
fn name(message: &[u8], mut at: usize) -> Option<(DomainName, usize)> {
    let mut labels = DomainName::new();
    let (mut end, mut pointers, mut bytes) = (None, 0, 0);
    loop {
        let length = usize::from(*message.get(at)?);
        match length >> 6 {
            0 if length == 0 => return Some((labels, end.unwrap_or(at + 1))),
            0 => {
                bytes += length + 1;
                if bytes > MAX_NAME {
                    return None;
                }
                labels.push(message.get(at + 1..at + 1 + length)?.to_ascii_lowercase());
                at += 1 + length;
            }
            // A compression pointer to another offset in the message.
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

/// Writes a name as RFC 1035 (5.1) does: a byte that is not a letter, digit, hyphen or underscore becomes `\DDD`, so that no
/// untrusted byte reaches a line or a terminal.
fn text(labels: &DomainName) -> String {
    let mut text = String::new();
    for (i, label) in labels.iter().enumerate() {
        if i > 0 {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' | b'/' => text.push(char::from(*byte)),
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
