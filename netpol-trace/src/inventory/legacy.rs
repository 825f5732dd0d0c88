//! The tables of iptables-legacy and ip6tables-legacy, as `getsockopt` returns them. Only tables that exist are requested: the request
//! for another one would create it.
//!
//! The layouts are those of linux/netfilter/x_tables.h, ip_tables.h and ip6_tables.h, for 64-bit kernels.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::nft::{needs_conntrack, target};
use super::ruleset::{BaseChain, RuleEffect, RuleEngine, RulesetBuilder, TableFamily, TableKey, Terminals};
use crate::model::Hook;
use crate::netlink::text;

/// `struct ipt_getinfo`, the same for IPv6.
const INFO: usize = 84;
/// `struct ipt_get_entries` up to its entries.
const ENTRIES_HEADER: usize = 40;
const NAME: usize = 32;
/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, the same for IPv6.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Largest table that is read: 64 MiB are about 300,000 rules.
const MAX_TABLE: usize = 64 << 20;
/// `struct xt_entry_match` and `xt_entry_target` up to their data: size, name, revision.
const ITEM_HEADER: usize = 32;
/// Attempts to read a table: its size changes if it is replaced between the two requests.
const TRIES: usize = 4;

/// The layout of the entries of one family.
#[derive(Debug, Clone, Copy)]
struct EntryLayout {
    family: TableFamily,
    target_offset: usize,
    next_offset: usize,
    /// Offset of the matches.
    matches: usize,
}

const IPV4: EntryLayout = EntryLayout { family: TableFamily::Ip, target_offset: 88, next_offset: 90, matches: 112 };
const IPV6: EntryLayout = EntryLayout { family: TableFamily::Ip6, target_offset: 140, next_offset: 142, matches: 168 };

/// Reads every legacy table of this network namespace.
///
/// # Errors
/// The socket needs CAP_NET_RAW and the request CAP_NET_ADMIN.
pub fn read(builder: &mut RulesetBuilder) -> io::Result<()> {
    for (layout, names, domain, level) in [
        (IPV4, "/proc/thread-self/net/ip_tables_names", libc::AF_INET, libc::IPPROTO_IP),
        (IPV6, "/proc/thread-self/net/ip6_tables_names", libc::AF_INET6, libc::IPPROTO_IPV6),
    ] {
        let mut list = String::new();
        match File::open(names) {
            Ok(file) => file.take(1 << 16).read_to_string(&mut list)?,
            // This kernel has no such tables.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if list.is_empty() {
            continue;
        }
        let socket = socket(domain)?;
        for name in list.lines() {
            let (info, entries) = table(&socket, level, name)?;
            parse(builder, layout, name, &info, &entries);
        }
    }
    Ok(())
}

fn socket(domain: i32) -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn table(socket: &OwnedFd, level: i32, name: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut refused = io::ErrorKind::InvalidData.into();
    for _ in 0..TRIES {
        let mut info = request(name, INFO)?;
        get(socket, level, GET_INFO, &mut info)?;
        let size = word(&info, 80).unwrap_or(0) as usize;
        if size > MAX_TABLE {
            return Err(io::Error::other(format!("table {name} has {size} bytes")));
        }
        let mut entries = request(name, ENTRIES_HEADER + size)?;
        entries[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        match get(socket, level, GET_ENTRIES, &mut entries) {
            Ok(()) => return Ok((info, entries.split_off(ENTRIES_HEADER))),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

fn request(name: &str, size: usize) -> io::Result<Vec<u8>> {
    let mut request = vec![0; size];
    let field = request.get_mut(..name.len()).filter(|field| field.len() < NAME);
    field.ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(name.as_bytes());
    Ok(request)
}

fn get(socket: &OwnedFd, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, and `buffer` has as many.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One entry of a table.
struct TableEntry<'a> {
    /// Offset from the start of the table.
    at: usize,
    bytes: &'a [u8],
    target: &'a [u8],
    target_name: String,
}

/// Parses the entries of one table; pure, total. A chain is a run of entries: a built-in chain begins at its hook's entry point, another
/// one after an `ERROR` target that has its name.
fn parse(builder: &mut RulesetBuilder, layout: EntryLayout, name: &str, info: &[u8], blob: &[u8]) {
    const HOOKS: [(&str, Hook); 5] = [
        ("PREROUTING", Hook::Prerouting),
        ("INPUT", Hook::Input),
        ("FORWARD", Hook::Forward),
        ("OUTPUT", Hook::Output),
        ("POSTROUTING", Hook::Postrouting),
    ];
    let table = TableKey { backend: RuleEngine::Legacy, family: layout.family, name: name.to_owned() };
    builder.table(&table);
    let valid = word(info, 32).unwrap_or(0);
    let hook_at = |base: usize, at: usize| {
        (0..5).find(|hook| valid >> hook & 1 == 1 && word(info, base + 4 * hook) == u32::try_from(at).ok())
    };
    let entries: Vec<TableEntry<'_>> = TableEntries { layout, blob, at: 0 }.collect();
    // A jump has the offset of its chain's first entry: the one after the `ERROR` target.
    let starts: std::collections::HashMap<usize, String> = entries
        .iter()
        .filter(|entry| entry.target_name == "ERROR")
        .map(|entry| (entry.at + entry.bytes.len(), text(entry.target.get(ITEM_HEADER..).unwrap_or_default())))
        .collect();
    let mut chain = String::new();
    for entry in &entries {
        if let Some(hook) = hook_at(36, entry.at) {
            let (name, hook) = HOOKS[hook];
            chain = name.to_owned();
            builder.chain(&table, &chain, Some(BaseChain { hook, priority: 0, policy_drops: false }));
        }
        if entry.target_name == "ERROR" {
            chain = text(entry.target.get(ITEM_HEADER..).unwrap_or_default());
            continue;
        }
        let mut rule = RuleEffect {
            comment: comment(layout, entry),
            terminals: target(&entry.target_name),
            conntrack: needs_conntrack(&entry.target_name)
                || matches(layout, entry).any(|(name, _)| needs_conntrack(&name)),
            ..RuleEffect::default()
        };
        if entry.target_name.is_empty() {
            match word(entry.target, ITEM_HEADER).map(|verdict| verdict as i32) {
                Some(-1) => rule.terminals.add(Terminals::DROP),
                Some(-4) => rule.terminals.add(Terminals::QUEUE),
                Some(to) if to >= 0 => rule.jumps.extend(starts.get(&(to as usize)).cloned()),
                _ => {}
            }
        }
        // The last entry of a built-in chain is its policy: it ends packets like any other rule.
        builder.rule(&table, &chain, rule);
    }
}

struct TableEntries<'a> {
    layout: EntryLayout,
    blob: &'a [u8],
    at: usize,
}

impl<'a> Iterator for TableEntries<'a> {
    type Item = TableEntry<'a>;

    fn next(&mut self) -> Option<TableEntry<'a>> {
        let rest = self.blob.get(self.at..)?;
        let next = usize::from(half(rest, self.layout.next_offset)?);
        let target_offset = usize::from(half(rest, self.layout.target_offset)?);
        // Anything shorter than its own header would make no progress.
        let bytes = rest.get(..next).filter(|bytes| bytes.len() > self.layout.matches)?;
        let target = bytes.get(target_offset..).filter(|target| target.len() >= ITEM_HEADER)?;
        let entry = TableEntry { at: self.at, bytes, target, target_name: text(&target[2..31]) };
        self.at += next;
        Some(entry)
    }
}

/// Returns the text of the entry's comment match.
fn comment(layout: EntryLayout, entry: &TableEntry<'_>) -> Option<String> {
    matches(layout, entry).find(|(name, _)| name == "comment").map(|(_, data)| text(data))
}

/// Returns name and data of each match of an entry.
fn matches<'a>(layout: EntryLayout, entry: &TableEntry<'a>) -> impl Iterator<Item = (String, &'a [u8])> {
    let end = entry.bytes.len() - entry.target.len();
    let mut rest = entry.bytes.get(layout.matches..end).unwrap_or_default();
    std::iter::from_fn(move || {
        let size = usize::from(half(rest, 0)?);
        let item = rest.get(..size).filter(|item| item.len() >= ITEM_HEADER)?;
        rest = &rest[size..];
        Some((text(&item[2..31]), &item[ITEM_HEADER..]))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Family;

    fn item(name: &str, data: &[u8]) -> Vec<u8> {
        let size = (ITEM_HEADER + data.len()).next_multiple_of(8);
        let mut item = (size as u16).to_ne_bytes().to_vec();
        item.extend(name.as_bytes());
        item.resize(ITEM_HEADER, 0);
        item.extend(data);
        item.resize(size, 0);
        item
    }

    fn entry(layout: EntryLayout, matches: &[Vec<u8>], target: Vec<u8>) -> Vec<u8> {
        let mut entry = vec![0; layout.matches];
        entry.extend(matches.concat());
        let target_offset = entry.len() as u16;
        entry.extend(target);
        let next = entry.len() as u16;
        entry[layout.target_offset..layout.target_offset + 2].copy_from_slice(&target_offset.to_ne_bytes());
        entry[layout.next_offset..layout.next_offset + 2].copy_from_slice(&next.to_ne_bytes());
        entry
    }

    fn standard(verdict: i32) -> Vec<u8> {
        item("", &verdict.to_ne_bytes())
    }

    /// FORWARD: a jump to KUBE-POD-FW-X, policy ACCEPT; the chain rejects with a comment.
    fn table(layout: EntryLayout) -> (Vec<u8>, Vec<u8>) {
        let policy = entry(layout, &[], standard(-2));
        let header = entry(layout, &[], item("ERROR", b"KUBE-POD-FW-X\0"));
        let jump_size = entry(layout, &[], standard(0)).len();
        let start = jump_size + policy.len() + header.len();
        let jump = entry(layout, &[], standard(start as i32));
        let comment = item("comment", b"rule to REJECT traffic by policy\0");
        let reject = entry(layout, &[comment], item("REJECT", &[0; 8]));
        let end = entry(layout, &[], item("ERROR", b"ERROR\0"));
        let mut info = vec![0; INFO];
        info[32..36].copy_from_slice(&(1u32 << 2).to_ne_bytes());
        (info, [jump, policy, header, reject, end].concat())
    }

    #[test]
    fn chains_jumps_and_comments() {
        for layout in [IPV4, IPV6] {
            let (info, blob) = table(layout);
            let mut builder = RulesetBuilder::default();
            parse(&mut builder, layout, "filter", &info, &blob);
            let ruleset = builder.finish();
            let family = if layout.family == TableFamily::Ip { Family::Ipv4 } else { Family::Ipv6 };
            let found = ruleset.at(RuleEngine::Legacy, Some(Hook::Forward), family);
            assert_eq!(found.terminals(|_| false), Terminals::REJECT, "{layout:?}");
            assert!(found.has_policy());
            assert_eq!(ruleset.comments, ["rule to REJECT traffic by policy"]);
        }
    }

    proptest! {
        #[test]
        fn damaged_tables_never_panic(v6: bool, changes in proptest::collection::vec((0usize..2000, any::<u8>()), 0..8), cut in 0usize..900) {
            let layout = if v6 { IPV6 } else { IPV4 };
            let (mut info, mut blob) = table(layout);
            for (at, byte) in changes {
                if let Some(old) = blob.get_mut(at) { *old = byte; }
                if let Some(old) = info.get_mut(at) { *old = byte; }
            }
            blob.truncate(blob.len().saturating_sub(cut));
            parse(&mut RulesetBuilder::default(), layout, "filter", &info, &blob);
        }

        #[test]
        fn arbitrary_tables_never_panic(info in proptest::collection::vec(any::<u8>(), 0..100), blob in proptest::collection::vec(any::<u8>(), 0..600)) {
            parse(&mut RulesetBuilder::default(), IPV4, "filter", &info, &blob);
        }
    }
}
