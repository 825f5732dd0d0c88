//! Connections as seen at the pods' interfaces (the tc hook): they add to the records of drops, and some are unanswered.
//!
//! ```text
//! opened, refused, DNS answers ─> Flows ─┬─> a drop's record: original, service, names, spoofed, reject
//! drops ─────────────────────────────────┤
//!                                        └─> unanswered
//! ```
//!
//! The kernel side removes the entry of a connection when a reply comes, so only the kernel's table decides whether there was a reply. A lost
//! event can hide an unanswered connection but never invent one.

mod annotate;
mod names;
mod seen;
mod silence;
mod table;

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

pub use annotate::Origin;
pub use names::Names;
use netpol_trace_common::tc::{FROM_POD, FlowKey, FlowState, event};
pub use silence::{Finding, GRACE, body, flow};

use crate::kernel::tc::{TcEvent, TcView};
use crate::model::packet::Packet;

/// The kernel side as this module uses it; tests have one of their own.
pub trait Kernel {
    /// Returns `None` if the connection was answered.
    fn state(&self, key: &FlowKey) -> Option<FlowState>;
    fn forget(&mut self, key: &FlowKey);
    fn keys(&self) -> Vec<FlowKey>;
    /// Name of a pod's interface.
    fn interface(&self, index: u32) -> Option<String>;
    /// How long the interface has been watched.
    fn watched_for(&self, index: u32) -> Option<Duration>;
    /// The addresses of the pod behind the interface.
    fn addresses(&self, index: u32, looked_for: IpAddr) -> Vec<IpAddr>;
    /// The network namespace of the interfaces.
    fn netns(&self) -> u32;
}

impl Kernel for TcView {
    fn state(&self, key: &FlowKey) -> Option<FlowState> {
        self.flows.get(key)
    }
    fn forget(&mut self, key: &FlowKey) {
        self.flows.remove(key);
    }
    fn keys(&self) -> Vec<FlowKey> {
        self.flows.keys()
    }
    fn interface(&self, index: u32) -> Option<String> {
        self.interfaces.name(index)
    }
    fn watched_for(&self, index: u32) -> Option<Duration> {
        self.interfaces.watched_for(index)
    }
    fn addresses(&self, index: u32, looked_for: IpAddr) -> Vec<IpAddr> {
        self.interfaces.addresses(index, looked_for)
    }
    fn netns(&self) -> u32 {
        self.interfaces.netns()
    }
}

/// An address and a port.
pub type End = (IpAddr, u16);

/// A connection in the direction of its opener, with the addresses that it had where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub client: End,
    pub protocol: u8,
    pub server: End,
}

impl Tuple {
    fn of(key: &FlowKey, from_pod: bool) -> Tuple {
        let pod = (address(&key.pod), u16::from_be(key.pod_port));
        let remote = (address(&key.remote), u16::from_be(key.remote_port));
        let (client, server) = if from_pod { (pod, remote) } else { (remote, pod) };
        Tuple { client, protocol: key.protocol as u8, server }
    }

    /// Returns every tuple under which the connection of a dropped packet may have been seen: before and after NAT, in both directions.
    fn all_of(packet: &Packet) -> impl Iterator<Item = Tuple> + use<> {
        let headers = &packet.headers;
        let protocol = headers.protocol;
        let own = headers.source_port.zip(headers.destination_port).map(|(source, destination)| Tuple {
            client: (headers.source, source),
            protocol,
            server: (headers.destination, destination),
        });
        let tracked = packet.conntrack.filter(|ct| ct.original.protocol == protocol).map(|ct| {
            let (o, r) = (ct.original, ct.reply);
            [
                Tuple { client: (o.source, o.source_port), protocol, server: (o.destination, o.destination_port) },
                Tuple { client: (r.destination, r.destination_port), protocol, server: (r.source, r.source_port) },
                Tuple { client: (o.source, o.source_port), protocol, server: (r.source, r.source_port) },
            ]
        });
        own.into_iter().flat_map(|tuple| [tuple, tuple.flipped()]).chain(tracked.into_iter().flatten())
    }

    fn flipped(self) -> Tuple {
        Tuple { client: self.server, protocol: self.protocol, server: self.client }
    }
}

/// Undoes the programs' IPv4-mapped form.
fn address(words: &[u32; 4]) -> IpAddr {
    let mut octets = [0; 16];
    for (target, word) in octets.chunks_exact_mut(4).zip(words) {
        target.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = Ipv6Addr::from(octets);
    ip.to_ipv4_mapped().map_or(ip.into(), IpAddr::from)
}

/// Counts of connections for the status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub unanswered: u64,
    /// Unanswered connections without a record: too many at once, or drops may have been missed.
    pub unanswered_unreported: u64,
}

/// The connections of this node's pods; see the module's documentation.
pub struct Flows<K> {
    kernel: K,
    /// Drops are watched too, so "no drop on this node" is known.
    sees_drops: bool,
    table: table::Table,
    dropped: seen::Recent,
    refused: seen::Recent,
    names: Names,
    silence: silence::Silence,
    pub tally: Tally,
}

impl<K: Kernel> Flows<K> {
    pub fn new(kernel: K, sees_drops: bool) -> Flows<K> {
        Flows {
            kernel,
            sees_drops,
            table: table::Table::default(),
            dropped: seen::Recent::default(),
            refused: seen::Recent::default(),
            names: Names::default(),
            silence: silence::Silence::default(),
            tally: Tally::default(),
        }
    }

    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Takes one event of the tc programs.
    pub fn take(&mut self, event: TcEvent, now: Instant) {
        match event {
            TcEvent::Flow(flow) => match flow.event {
                event::OPENED if !self.table.open(&flow, now) => self.kernel.forget(&flow.key),
                event::OPENED => {}
                // The refusing packet goes back to the opener of the connection.
                event::RESET | event::ICMP => {
                    let tuple = Tuple::of(&flow.key, flow.direction != FROM_POD);
                    self.refused.insert(tuple, flow.time, now);
                }
                _ => {}
            },
            TcEvent::Dns(flow, message) => {
                self.names.told(flow.key.ifindex, address(&flow.key.pod), &message, now);
            }
        }
    }

    /// Notes that a packet was dropped: its connection is not unanswered without a reason.
    pub fn saw_drop(&mut self, packet: &Packet, now: Instant) {
        if matches!(
            packet.headers.protocol,
            crate::model::packet::TCP | crate::model::packet::UDP | crate::model::packet::SCTP
        ) {
            for tuple in Tuple::all_of(packet) {
                self.dropped.insert(tuple, packet.time, now);
            }
        }
    }

    /// Notes that drops were lost. For a while no connection is reported as unanswered, because the lost drop may explain it.
    pub fn lost_drops(&mut self, now: Instant) {
        self.dropped.blind(now);
    }

    /// Removes old entries, and kernel entries whose event was lost.
    pub fn sweep(&mut self) {
        let kernel = &self.kernel;
        self.names.retain(|interface| kernel.interface(interface).is_some());
        for key in self.kernel.keys() {
            if !self.table.knows(&key) && self.kernel.state(&key).is_some_and(|state| is_old(&state)) {
                self.kernel.forget(&key);
            }
        }
    }
}

fn is_old(state: &FlowState) -> bool {
    const ANNOUNCED_BY_NOW: u64 = 60_000_000_000;
    crate::kernel::clock::monotonic_ns().saturating_sub(state.opened) > ANNOUNCED_BY_NOW
}

#[cfg(test)]
mod tests;
