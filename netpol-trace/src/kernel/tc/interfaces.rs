//! The pods' interfaces, shared by the thread that attaches the programs and the pipeline.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use aya::programs::TcAttachType;

use super::mode::TcMode;
use super::order::before_ours;
use crate::lock::IgnorePoison;
use crate::netlink::route::{self, Link};

/// The least time between two requests for the addresses behind an interface.
const ADDRESSES_AGE: Duration = Duration::from_secs(3);
/// Interfaces that a status names.
const NAMED: usize = 4;

/// The pods' interfaces of this network namespace.
#[derive(Debug)]
pub struct Interfaces {
    mode: TcMode,
    /// Inode number of this network namespace, to which the interface indexes belong.
    netns: u32,
    /// Ids of our programs.
    programs: Vec<(TcAttachType, u32)>,
    state: RwLock<InterfaceTable>,
}

#[derive(Debug, Default)]
struct InterfaceTable {
    interfaces: HashMap<u32, Interface>,
    /// Programs that run before ours, by "interface direction".
    others: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Interface {
    link: Link,
    since: Instant,
    /// Why our programs are not attached.
    error: Option<String>,
    addresses: Vec<IpAddr>,
    requested: Option<Instant>,
}

impl Interfaces {
    pub(super) fn new(mode: TcMode, programs: Vec<(TcAttachType, u32)>) -> io::Result<Interfaces> {
        let netns = std::fs::metadata("/proc/self/ns/net")?.ino();
        Ok(Interfaces { mode, netns: netns as u32, programs, state: RwLock::default() })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, InterfaceTable> {
        self.state.read().ignore_poison()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, InterfaceTable> {
        self.state.write().ignore_poison()
    }

    pub(super) fn insert(&self, link: Link, error: Option<String>) {
        let interface = Interface { since: Instant::now(), error, addresses: Vec::new(), requested: None, link };
        self.write().interfaces.insert(interface.link.index, interface);
    }

    pub(super) fn renamed(&self, link: Link) {
        if let Some(interface) = self.write().interfaces.get_mut(&link.index) {
            interface.link = link;
        }
    }

    pub(super) fn remove(&self, index: u32) {
        self.write().interfaces.remove(&index);
    }

    pub(super) fn indexes(&self) -> Vec<u32> {
        self.read().interfaces.keys().copied().collect()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.read().interfaces.values().any(|interface| interface.error.is_some())
    }

    /// Inode number of the network namespace that the interfaces are in.
    pub fn netns(&self) -> u32 {
        self.netns
    }

    pub fn is_pods(&self, index: u32) -> bool {
        self.read().interfaces.contains_key(&index)
    }

    pub fn name(&self, index: u32) -> Option<String> {
        self.read().interfaces.get(&index).map(|interface| interface.link.name.clone())
    }

    /// How long the programs have been attached to an interface.
    pub fn watched_for(&self, index: u32) -> Option<Duration> {
        self.read().interfaces.get(&index).filter(|i| i.error.is_none()).map(|interface| interface.since.elapsed())
    }

    /// The addresses of the pod behind an interface, from the kernel. They are set after the interface appeared, without a notification. If
    /// `looked_for` is not among them, this requests them again, at most every [`ADDRESSES_AGE`].
    pub fn addresses(&self, index: u32, looked_for: IpAddr) -> Vec<IpAddr> {
        {
            let state = self.read();
            let Some(interface) = state.interfaces.get(&index) else { return Vec::new() };
            let fresh = interface.requested.is_some_and(|requested| requested.elapsed() < ADDRESSES_AGE);
            if fresh || interface.addresses.contains(&looked_for) {
                return interface.addresses.clone();
            }
        }
        let mut state = self.write();
        let Some(interface) = state.interfaces.get_mut(&index) else { return Vec::new() };
        interface.requested = Some(Instant::now());
        if let Some(netns) = interface.link.peer_netns {
            match route::addresses(netns, interface.link.peer) {
                Ok(addresses) => interface.addresses = addresses,
                Err(error) => tracing::debug!(interface = interface.link.name, %error, "addresses can't be read"),
            }
        }
        interface.addresses.clone()
    }

    /// The interface with `address` behind it, if there is exactly one.
    pub fn behind(&self, address: IpAddr) -> Option<u32> {
        let mut found = None;
        for index in self.indexes() {
            if self.addresses(index, address).contains(&address) && found.replace(index).is_some() {
                return None;
            }
        }
        found
    }

    /// Finds interfaces on which another program runs before ours.
    pub fn look_for_others(&self) {
        let links: Vec<Link> =
            self.read().interfaces.values().filter(|i| i.error.is_none()).map(|i| i.link.clone()).collect();
        let mut others = BTreeMap::new();
        for link in &links {
            for (side, id) in &self.programs {
                let names = before_ours(link, self.mode, *side, *id);
                if !names.is_empty() {
                    let side = if *side == TcAttachType::Ingress { "ingress" } else { "egress" };
                    others.insert(format!("{} {side}", link.name), names.join(", "));
                }
            }
        }
        self.write().others = others;
    }

    /// The number of watched interfaces and what limits the view, for the status.
    pub fn describe(&self) -> String {
        let state = self.read();
        let failed: Vec<&Interface> = state.interfaces.values().filter(|i| i.error.is_some()).collect();
        let mut text = match state.interfaces.len() - failed.len() {
            0 if failed.is_empty() => {
                "no pod's interface in this network namespace (in a pod: hostNetwork: true)".to_owned()
            }
            1 => "1 pod interface".to_owned(),
            count => format!("{count} pod interfaces"),
        };
        if let Some(first) = failed.first() {
            let error = first.error.as_deref().unwrap_or_default();
            text += &format!("; not on {} others ({}: {error})", failed.len(), first.link.name);
        }
        if !state.others.is_empty() {
            text += "; another program runs first and hides what it does not let pass: ";
            let named: Vec<String> =
                state.others.iter().take(NAMED).map(|(interface, names)| format!("{names} on {interface}")).collect();
            text += &named.join("; ");
            if state.others.len() > NAMED {
                text += &format!("; and {} more", state.others.len() - NAMED);
            }
        }
        text
    }

    pub fn mode(&self) -> TcMode {
        self.mode
    }
}
