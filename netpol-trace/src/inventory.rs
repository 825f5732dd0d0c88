//! A read-only inventory of what can drop packets in the agent's own network namespace: nftables, legacy iptables, queues,
//! tc, XDP. It says what the kernel's word for a drop leaves open: which engine it was, whether it drops or rejects, and
//! whether a chain that enforces policies is there at all.
//!
//! ```text
//! netlink, getsockopt, /proc ─> nft, legacy, devices (pure parsers) ─> Ruleset ─> Inventory <─ cause, doctor
//!                                        ^                                            |
//!                                        └── Watcher: again when nftables says so, and every few seconds
//! ```
//!
//! A right that is missing leaves a part unknown, with its reason; nothing fails for it. A drop of another network namespace
//! is never judged by it.

pub mod coverage;
pub mod devices;
mod legacy;
mod nft;
pub mod owner;
pub mod ruleset;
mod watch;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use netlink_sys::protocols::NETLINK_NETFILTER;
pub use watch::Watcher;

use self::devices::Device;
use self::ruleset::{Backend, Builder, ByOwner, Ruleset};
use crate::model::{Family, Hook, Mechanism};
use crate::netlink::{self, Complete};

/// Whether a part of the inventory is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    Yes,
    /// This kernel, or this network namespace, has no such thing.
    Absent,
    /// With the reason.
    No(String),
}

impl Known {
    fn of(result: io::Result<()>) -> Known {
        result.map_or_else(|error| Known::No(error.to_string()), |()| Known::Yes)
    }

    pub fn is_known(&self) -> bool {
        !matches!(self, Known::No(_))
    }
}

/// What there is in one network namespace at one time.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    pub nft: Known,
    pub legacy: Known,
    pub ruleset: Ruleset,
    /// The NFQUEUEs that have a listener.
    pub queues: Vec<Queue>,
    /// Conntrack has connections of this network namespace, so its hooks are at work here.
    pub conntrack: bool,
    pub devices_known: Known,
    pub devices: Vec<Device>,
}

/// An NFQUEUE with a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    pub number: u16,
    /// Packets lost because the queue or its listener's socket was full.
    pub lost: u64,
}

/// Who can have dropped a packet at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// A chain that enforces policies can.
    Policy,
    /// Only chains of others can.
    Other,
    /// Nobody's name is on what can.
    Nobody,
}

impl Inventory {
    /// Looks at the network namespace of the calling thread. `linked` names the programs of a device that netlink
    /// does not tell.
    pub fn read(linked: impl Fn(&str) -> Vec<String>) -> Inventory {
        let mut builder = Builder::default();
        let nft = if nft_loaded() { Known::of(read_nft(&mut builder)) } else { Known::Absent };
        let legacy = Known::of(legacy::read(&mut builder));
        if [&nft, &legacy].iter().any(|known| !known.is_known()) {
            builder.incomplete();
        }
        let (devices_known, devices) = match devices::read(linked) {
            Ok(devices) => (Known::Yes, devices),
            Err(error) => (Known::No(error.to_string()), Vec::new()),
        };
        Inventory {
            netns: own_netns(),
            nft,
            legacy,
            ruleset: builder.finish(),
            queues: queues(),
            conntrack: has_connections(),
            devices_known,
            devices,
        }
    }

    /// Whether a drop in the network namespace `netns` happened here.
    pub fn is_of(&self, netns: Option<u32>) -> bool {
        netns.is_some() && netns == self.netns
    }

    /// What netfilter's engines can do where a drop happened; the engine that `mechanism` leaves open are both.
    pub fn at(&self, mechanism: Mechanism, hook: Option<Hook>, family: Family) -> ByOwner {
        let both = [Backend::Nft, Backend::Legacy];
        let backends: &[Backend] = match mechanism {
            Mechanism::Nftables => &both[..1],
            Mechanism::IptablesLegacy => &both[1..],
            _ => &both,
        };
        let mut all = ByOwner::default();
        backends.iter().for_each(|backend| all.add(&self.ruleset.at(*backend, hook, family)));
        all
    }

    /// Who can have dropped a packet there.
    pub fn blame(&self, mechanism: Mechanism, hook: Option<Hook>, family: Family) -> Blame {
        let found = self.at(mechanism, hook, family);
        if mechanism == Mechanism::Nfqueue {
            return if found.has_policy_queue() { Blame::Policy } else { Blame::Nobody };
        }
        let somebody = found.0.keys().any(Option::is_some);
        let nobody = found.0.keys().any(Option::is_none);
        match (found.has_policy(), somebody, nobody) {
            (true, ..) => Blame::Policy,
            // With the enforcer known by name elsewhere, a chain without a name is not its.
            (false, _, true) if self.ruleset.complete && self.enforcer_known() => Blame::Other,
            (false, true, false) if self.ruleset.complete => Blame::Other,
            _ => Blame::Nobody,
        }
    }

    /// The parts that can't be read, with the reason.
    pub fn unknown(&self) -> Vec<String> {
        let parts = [("nftables", &self.nft), ("iptables-legacy", &self.legacy), ("devices", &self.devices_known)];
        let mut unknown = Vec::new();
        for (name, known) in parts {
            if let Known::No(why) = known {
                unknown.push(format!("{name} ({why})"));
            }
        }
        unknown
    }

    /// Whether a chain with the name of an enforcer exists in a ruleset.
    pub fn enforcer_known(&self) -> bool {
        self.ruleset.owners.keys().any(|(owner, _)| owner.is_policy())
    }

    /// The CNI whose tc program sits on a device.
    pub fn cni_on(&self, device: &str) -> Option<&'static str> {
        self.devices.iter().find(|d| d.name == device)?.cni()
    }
}

/// Tables, chains, rules, and the elements of verdict maps.
/// Reads conntrack's number of connections in this network namespace.
fn has_connections() -> bool {
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|count| count.trim().parse().is_ok_and(|count: u64| count > 0))
}

fn read_nft(builder: &mut Builder) -> io::Result<()> {
    let request = |message: u16| nft::SUBSYSTEM << 8 | message;
    *builder = netlink::consistent(|| {
        let mut fresh = Builder::default();
        let mut complete = Complete(true);
        let mut maps = Vec::new();
        for question in [nft::GET_TABLE, nft::GET_CHAIN, nft::GET_RULE, nft::GET_SET] {
            let dump = netlink::dump(NETLINK_NETFILTER, request(question), &[0; 4], |kind, body| {
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
                // Gone since it was listed.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => complete.0 = false,
                Err(error) => return Err(error),
            }
        }
        Ok((fresh, complete))
    })?;
    Ok(())
}

/// Whether nftables is in the kernel's image.
static NFT_BUILT_IN: OnceLock<bool> = OnceLock::new();

/// To be told by who has read the kernel's symbols anyway.
pub fn nft_is_built_in(known: bool) {
    let _ = NFT_BUILT_IN.set(known);
}

/// Whether nftables is there. Asking for its tables would load it.
fn nft_loaded() -> bool {
    fs::exists("/sys/module/nf_tables").unwrap_or(false)
        || *NFT_BUILT_IN.get_or_init(|| {
            let symbols = fs::read("/proc/kallsyms").unwrap_or_default();
            // A module's symbols have its name behind them.
            symbols.split(|byte| *byte == b'\n').any(|line| line.ends_with(b" nft_do_chain"))
        })
}

/// The inode number that records call `kernel.netns`.
fn own_netns() -> Option<u32> {
    u32::try_from(fs::metadata("/proc/thread-self/ns/net").ok()?.ino()).ok()
}

/// `queue peer total mode range queue_dropped user_dropped sequence 1`, a line per queue with a listener.
fn queues() -> Vec<Queue> {
    let mut text = String::new();
    // No such file: no such module, so no queue.
    if let Ok(file) = fs::File::open("/proc/thread-self/net/netfilter/nfnetlink_queue") {
        let _ = file.take(1 << 20).read_to_string(&mut text);
    }
    text.lines().filter_map(queue).collect()
}

fn queue(line: &str) -> Option<Queue> {
    let mut numbers = line.split_whitespace();
    let number = numbers.next()?.parse().ok()?;
    let mut lost = numbers.skip(4).map(|n| n.parse::<u64>().unwrap_or(0));
    Some(Queue { number, lost: lost.next()?.saturating_add(lost.next()?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::ruleset::{Base, Ends, Rule, TableFamily, TableKey};

    fn inventory(rules: &[(&str, Hook, &str, Ends)]) -> Inventory {
        let mut builder = Builder::default();
        for (table, hook, chain, ends) in rules {
            let key = TableKey { backend: Backend::Nft, family: TableFamily::Inet, name: (*table).into() };
            let base = format!("base-{hook:?}");
            builder.chain(&key, &base, Some(Base { hook: *hook, priority: 0, policy_drops: false }));
            builder.rule(&key, &base, Rule { jumps: vec![(*chain).into()], ..Rule::default() });
            builder.rule(&key, chain, Rule { ends: *ends, ..Rule::default() });
        }
        Inventory {
            netns: Some(1),
            nft: Known::Yes,
            legacy: Known::Absent,
            ruleset: builder.finish(),
            queues: vec![],
            conntrack: false,
            devices_known: Known::Yes,
            devices: vec![],
        }
    }

    #[test]
    fn blame() {
        let here = |rules: &[_], hook| inventory(rules).blame(Mechanism::Nftables, Some(hook), Family::Ipv4);
        let calico = ("filter", Hook::Forward, "cali-tw-x", Ends::DROP);
        let ufw = ("filter", Hook::Input, "ufw-user-input", Ends::DROP);
        let plain = ("mine", Hook::Input, "input", Ends::DROP);
        assert_eq!(here(&[calico, ufw], Hook::Forward), Blame::Policy);
        assert_eq!(here(&[calico, ufw], Hook::Input), Blame::Other);
        assert_eq!(here(&[calico, plain], Hook::Input), Blame::Other, "Calico's chains are elsewhere");
        assert_eq!(here(&[plain], Hook::Input), Blame::Nobody, "the enforcer may have no name");
        assert_eq!(here(&[ufw], Hook::Input), Blame::Other);
    }

    #[test]
    fn queues_are_read() {
        assert_eq!(queue("  100  12345     0 2 65531     3     4        9  1"), Some(Queue { number: 100, lost: 7 }));
        assert_eq!(queue("garbage"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        // Whatever the rights: parts may be unknown, with a reason, and nothing panics.
        let inventory = Inventory::read(|_| Vec::new());
        assert!(inventory.netns.is_some());
        assert!(inventory.devices_known.is_known(), "anybody may list devices: {:?}", inventory.devices_known);
        assert!(inventory.devices.iter().any(|device| device.name == "lo"));
    }
}
