//! A read-only inventory of everything that can drop packets in the agent's own network namespace: nftables, legacy iptables, queues, tc,
//! XDP. It answers what the kernel's drop reason leaves open: which rule engine dropped the packet, whether its rules drop or reject, and
//! whether a chain of a policy enforcer is there at all.
//!
//! ```text
//! netlink, getsockopt, /proc ─> nft, legacy, devices (pure parsers) ─> Ruleset ─> Inventory <─ decide, doctor
//!                                        ^                                            |
//!                                        └── InventoryWatcher: on nftables' notifications, and every few seconds
//! ```
//!
//! Without a permission a part stays unknown, with the reason; nothing fails. The inventory is not used for drops of other network
//! namespaces.

pub mod coverage;
pub mod devices;
mod legacy;
mod nft;
pub mod products;
pub mod ruleset;
mod watch;

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use netlink_sys::protocols::NETLINK_NETFILTER;
pub use watch::InventoryWatcher;

use self::devices::Device;
use self::ruleset::{RuleEngine, Ruleset, RulesetBuilder, TerminalsByProduct};
use crate::model::{Family, Hook, Mechanism};
use crate::netlink::{self, Complete};

/// Whether a part of the inventory can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readable {
    Yes,
    /// This kernel or this network namespace does not have the part.
    Absent,
    /// The part cannot be read; the text is the reason.
    No(String),
}

impl Readable {
    fn of(result: io::Result<()>) -> Readable {
        result.map_or_else(|error| Readable::No(error.to_string()), |()| Readable::Yes)
    }

    pub fn is_known(&self) -> bool {
        !matches!(self, Readable::No(_))
    }
}

/// The inventory of one network namespace at one time.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    pub nft: Readable,
    pub legacy: Readable,
    pub ruleset: Ruleset,
    /// The NFQUEUEs that have a listener.
    pub queues: Vec<NfQueue>,
    /// The addresses of all interfaces.
    pub addresses: Vec<IpAddr>,
    /// Conntrack has connections of this network namespace, so its hooks are registered here.
    pub conntrack: bool,
    pub devices_known: Readable,
    pub devices: Vec<Device>,
}

/// An NFQUEUE with a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NfQueue {
    pub number: u16,
    /// Packets lost because the queue or its listener's socket was full.
    pub lost: u64,
}

/// Whose rules can have dropped a packet at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleOwnership {
    /// A chain of a policy enforcer can.
    Enforcer,
    /// Only chains of other products can.
    Other,
    /// No known product has the chains that can.
    Unknown,
}

impl Inventory {
    /// Reads the network namespace of the calling thread. `linked` returns the names of a device's programs that netlink does not list.
    pub fn read(linked: impl Fn(&str) -> Vec<String>) -> Inventory {
        let mut builder = RulesetBuilder::default();
        let nft = if nft_loaded() { Readable::of(read_nft(&mut builder)) } else { Readable::Absent };
        let legacy = Readable::of(legacy::read(&mut builder));
        if [&nft, &legacy].iter().any(|known| !known.is_known()) {
            builder.incomplete();
        }
        let (devices_known, devices) = match devices::read(linked) {
            Ok(devices) => (Readable::Yes, devices),
            Err(error) => (Readable::No(error.to_string()), Vec::new()),
        };
        Inventory {
            netns: own_netns(),
            nft,
            legacy,
            ruleset: builder.finish(),
            queues: queues(),
            addresses: own_addresses(),
            conntrack: has_connections(),
            devices_known,
            devices,
        }
    }

    /// Returns true if this is the inventory of the network namespace `netns`.
    pub fn is_of(&self, netns: Option<u32>) -> bool {
        netns.is_some() && netns == self.netns
    }

    /// Returns what the rules at a hook can do with a packet. If `mechanism` does not determine the rule engine, it is both.
    pub fn at(&self, mechanism: Mechanism, hook: Option<Hook>, family: Family) -> TerminalsByProduct {
        let both = [RuleEngine::Nft, RuleEngine::Legacy];
        let backends: &[RuleEngine] = match mechanism {
            Mechanism::Nftables => &both[..1],
            Mechanism::IptablesLegacy => &both[1..],
            _ => &both,
        };
        let mut all = TerminalsByProduct::default();
        backends.iter().for_each(|backend| all.add(&self.ruleset.at(*backend, hook, family)));
        all
    }

    /// Returns whose rules can have dropped a packet there.
    pub fn ownership(&self, mechanism: Mechanism, hook: Option<Hook>, family: Family) -> RuleOwnership {
        let found = self.at(mechanism, hook, family);
        if mechanism == Mechanism::Nfqueue {
            return if found.has_policy_queue() { RuleOwnership::Enforcer } else { RuleOwnership::Unknown };
        }
        let somebody = found.0.keys().any(Option::is_some);
        let nobody = found.0.keys().any(Option::is_none);
        match (found.has_policy(), somebody, nobody) {
            (true, ..) => RuleOwnership::Enforcer,
            // The enforcer's chains are known at other hooks, so a chain of no known product is not the enforcer's.
            (false, _, true) if self.ruleset.complete && self.enforcer_known() => RuleOwnership::Other,
            (false, true, false) if self.ruleset.complete => RuleOwnership::Other,
            _ => RuleOwnership::Unknown,
        }
    }

    /// Returns the parts that cannot be read, with the reason.
    pub fn unknown(&self) -> Vec<String> {
        let parts = [("nftables", &self.nft), ("iptables-legacy", &self.legacy), ("devices", &self.devices_known)];
        let mut unknown = Vec::new();
        for (name, known) in parts {
            if let Readable::No(why) = known {
                unknown.push(format!("{name} ({why})"));
            }
        }
        unknown
    }

    /// Returns true if a ruleset has a chain of a policy enforcer.
    pub fn enforcer_known(&self) -> bool {
        self.ruleset.products.keys().any(|(product, _)| product.is_enforcer())
    }

    /// Returns the CNI whose tc program is on a device.
    pub fn cni_on(&self, device: &str) -> Option<&'static str> {
        self.devices.iter().find(|d| d.name == device)?.cni()
    }
}

/// Reads tables, chains, rules, and the elements of verdict maps.
fn read_nft(builder: &mut RulesetBuilder) -> io::Result<()> {
    let request = |message: u16| nft::SUBSYSTEM << 8 | message;
    *builder = netlink::consistent(|| {
        let mut fresh = RulesetBuilder::default();
        let mut complete = Complete(true);
        let mut maps = Vec::new();
        for object in [nft::GET_TABLE, nft::GET_CHAIN, nft::GET_RULE, nft::GET_SET] {
            let dump = netlink::dump(NETLINK_NETFILTER, request(object), &[0; 4], |kind, body| {
                maps.extend(nft::take(&mut fresh, kind & 0xff, body));
            })?;
            complete.0 &= dump.0;
        }
        for map in maps {
            let body = nft::elements_request(&map);
            let elements = request(nft::GET_SET_ELEMENTS);
            let dump = netlink::dump(NETLINK_NETFILTER, elements, &body, |kind, body| {
                nft::take(&mut fresh, kind & 0xff, body);
            });
            match dump {
                Ok(dump) => complete.0 &= dump.0,
                // The map was removed after it was listed.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => complete.0 = false,
                Err(error) => return Err(error),
            }
        }
        Ok((fresh, complete))
    })?;
    Ok(())
}

/// True if nftables is built into the kernel's image.
static NFT_BUILT_IN: OnceLock<bool> = OnceLock::new();

/// Sets whether nftables is built in, which the caller knows from the kernel's symbols.
pub fn nft_is_built_in(known: bool) {
    let _ = NFT_BUILT_IN.set(known);
}

/// Returns true if nftables is loaded. A request for its tables would load it.
fn nft_loaded() -> bool {
    fs::exists("/sys/module/nf_tables").unwrap_or(false)
        || *NFT_BUILT_IN.get_or_init(|| {
            let symbols = fs::read("/proc/kallsyms").unwrap_or_default();
            // In a line of a module's symbol the module's name follows.
            symbols.split(|byte| *byte == b'\n').any(|line| line.ends_with(b" nft_do_chain"))
        })
}

/// Returns the inode number of the network namespace, the `kernel.netns` of records.
fn own_netns() -> Option<u32> {
    u32::try_from(fs::metadata("/proc/thread-self/ns/net").ok()?.ino()).ok()
}

/// Returns the addresses of all interfaces; none if they cannot be read, which is logged.
fn own_addresses() -> Vec<IpAddr> {
    netlink::route::own_addresses()
        .inspect_err(|error| tracing::warn!(%error, "cannot list this node's addresses: probes from its bridges may be named unknown"))
        .unwrap_or_default()
}

/// Returns true if conntrack has connections of this network namespace.
fn has_connections() -> bool {
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|count| count.trim().parse().is_ok_and(|count: u64| count > 0))
}

/// Reads the queues with a listener, a line each: `queue peer total mode range queue_dropped user_dropped sequence 1`.
fn queues() -> Vec<NfQueue> {
    let mut text = String::new();
    // Without the file the module is not loaded, so there are no queues.
    if let Ok(file) = fs::File::open("/proc/thread-self/net/netfilter/nfnetlink_queue") {
        let _ = file.take(1 << 20).read_to_string(&mut text);
    }
    text.lines().filter_map(queue).collect()
}

fn queue(line: &str) -> Option<NfQueue> {
    let mut numbers = line.split_whitespace();
    let number = numbers.next()?.parse().ok()?;
    let mut lost = numbers.skip(4).map(|n| n.parse::<u64>().unwrap_or(0));
    Some(NfQueue { number, lost: lost.next()?.saturating_add(lost.next()?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::ruleset::{BaseChain, RuleEffect, TableFamily, TableKey, Terminals};

    fn inventory(rules: &[(&str, Hook, &str, Terminals)]) -> Inventory {
        let mut builder = RulesetBuilder::default();
        for (table, hook, chain, terminals) in rules {
            let key = TableKey { backend: RuleEngine::Nft, family: TableFamily::Inet, name: (*table).into() };
            let base = format!("base-{hook:?}");
            builder.chain(&key, &base, Some(BaseChain { hook: *hook, priority: 0, policy_drops: false }));
            builder.rule(&key, &base, RuleEffect { jumps: vec![(*chain).into()], ..RuleEffect::default() });
            builder.rule(&key, chain, RuleEffect { terminals: *terminals, ..RuleEffect::default() });
        }
        Inventory {
            netns: Some(1),
            nft: Readable::Yes,
            legacy: Readable::Absent,
            ruleset: builder.finish(),
            queues: vec![],
            addresses: vec![],
            conntrack: false,
            devices_known: Readable::Yes,
            devices: vec![],
        }
    }

    #[test]
    fn ownership() {
        let here = |rules: &[_], hook| inventory(rules).ownership(Mechanism::Nftables, Some(hook), Family::Ipv4);
        let calico = ("filter", Hook::Forward, "cali-tw-x", Terminals::DROP);
        let ufw = ("filter", Hook::Input, "ufw-user-input", Terminals::DROP);
        let plain = ("mine", Hook::Input, "input", Terminals::DROP);
        assert_eq!(here(&[calico, ufw], Hook::Forward), RuleOwnership::Enforcer);
        assert_eq!(here(&[calico, ufw], Hook::Input), RuleOwnership::Other);
        assert_eq!(here(&[calico, plain], Hook::Input), RuleOwnership::Other, "Calico's chains are elsewhere");
        assert_eq!(here(&[plain], Hook::Input), RuleOwnership::Unknown, "the enforcer may be unknown");
        assert_eq!(here(&[ufw], Hook::Input), RuleOwnership::Other);
    }

    #[test]
    fn queues_are_read() {
        assert_eq!(queue("  100  12345     0 2 65531     3     4        9  1"), Some(NfQueue { number: 100, lost: 7 }));
        assert_eq!(queue("garbage"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        // With any permissions: parts may be unknown, with a reason, and nothing panics.
        let inventory = Inventory::read(|_| Vec::new());
        assert!(inventory.netns.is_some());
        assert!(inventory.devices_known.is_known(), "anybody may list devices: {:?}", inventory.devices_known);
        assert!(inventory.devices.iter().any(|device| device.name == "lo"));
    }
}
