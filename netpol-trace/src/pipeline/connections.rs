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
mod table;
mod unanswered;

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

pub use annotate::Origin;
pub use names::DnsNames;
use netpol_trace_common::tc::{FROM_POD, FlowEvent, FlowKey, FlowState, event};
pub use unanswered::{GRACE, UnansweredConnection, body, flow};

use crate::kernel::tc::{TcEvent, TcView};
use crate::model::packet::{self, Headers, Packet};

/// The kernel side of the tc hook; tests have an implementation of their own.
pub trait KernelFlows {
    /// Returns `None` if the connection got a reply.
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

impl KernelFlows for TcView {
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

/// Conntrack's timeout for UDP without answers (`nf_conntrack_udp_timeout`), ns.
const UDP_TIMEOUT: u64 = 30_000_000_000;

/// An address and a port.
pub type AddressPort = (IpAddr, u16);

/// A connection in the direction of its opener, with the addresses that it had where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionTuple {
    pub client: AddressPort,
    pub protocol: u8,
    pub server: AddressPort,
}

impl ConnectionTuple {
    fn of(key: &FlowKey, from_pod: bool) -> ConnectionTuple {
        let pod = (address(&key.pod), u16::from_be(key.pod_port));
        let remote = (address(&key.remote), u16::from_be(key.remote_port));
        let (client, server) = if from_pod { (pod, remote) } else { (remote, pod) };
        ConnectionTuple { client, protocol: key.protocol as u8, server }
    }

    /// Returns the tuple of a packet with ports, as if its source had opened the connection.
    pub fn of_headers(headers: &Headers) -> Option<ConnectionTuple> {
        let (source, destination) = headers.source_port.zip(headers.destination_port)?;
        let (client, server) = ((headers.source, source), (headers.destination, destination));
        Some(ConnectionTuple { client, protocol: headers.protocol, server })
    }

    /// Returns the tuple of a packet that an ICMP error quotes, as if that packet's source had opened the connection.
    pub fn of_quoted(quoted: &packet::ConntrackTuple) -> ConnectionTuple {
        ConnectionTuple {
            client: (quoted.source, quoted.source_port),
            protocol: quoted.protocol,
            server: (quoted.destination, quoted.destination_port),
        }
    }

    /// Returns every tuple under which the connection of a dropped packet may have been seen: before and after NAT, in both directions.
    fn all_of(packet: &Packet) -> impl Iterator<Item = ConnectionTuple> + use<> {
        let protocol = packet.headers.protocol;
        let own = ConnectionTuple::of_headers(&packet.headers);
        let tracked = packet.conntrack.filter(|ct| ct.original.protocol == protocol).map(|ct| {
            let (o, r) = (ct.original, ct.reply);
            [
                ConnectionTuple {
                    client: (o.source, o.source_port),
                    protocol,
                    server: (o.destination, o.destination_port),
                },
                ConnectionTuple {
                    client: (r.destination, r.destination_port),
                    protocol,
                    server: (r.source, r.source_port),
                },
                ConnectionTuple { client: (o.source, o.source_port), protocol, server: (r.source, r.source_port) },
            ]
        });
        own.into_iter().flat_map(|tuple| [tuple, tuple.flipped()]).chain(tracked.into_iter().flatten())
    }

    pub fn flipped(self) -> ConnectionTuple {
        ConnectionTuple { client: self.server, protocol: self.protocol, server: self.client }
    }
}

/// Undoes the programs' IPv4-mapped form.
fn address(words: &[u32; 4]) -> IpAddr {
    let mut bytes = [0; 16];
    for (target, word) in bytes.chunks_exact_mut(4).zip(words) {
        target.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = Ipv6Addr::from(bytes);
    ip.to_ipv4_mapped().map_or(ip.into(), IpAddr::from)
}

/// Counts of connections for the status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnansweredTally {
    pub unanswered: u64,
    /// Unanswered connections without a record: too many at once, or drops may have been missed.
    pub unanswered_unreported: u64,
}

/// The connections of this node's pods; see the module's documentation.
pub struct Flows<K> {
    kernel: K,
    /// Drops are watched too, so "no drop on this node" is known.
    sees_drops: bool,
    table: table::ConnectionTable,
    dropped: seen::RecentEvents,
    refused: seen::RecentEvents,
    /// Connections whose opener the tc hook saw.
    opened: seen::RecentEvents,
    names: DnsNames,
    unanswered: unanswered::ReportWindows,
    pub tally: UnansweredTally,
}

impl<K: KernelFlows> Flows<K> {
    pub fn new(kernel: K, sees_drops: bool) -> Flows<K> {
        Flows {
            kernel,
            sees_drops,
            table: table::ConnectionTable::default(),
            dropped: seen::RecentEvents::default(),
            refused: seen::RecentEvents::default(),
            opened: seen::RecentEvents::default(),
            names: DnsNames::default(),
            unanswered: unanswered::ReportWindows::default(),
            tally: UnansweredTally::default(),
        }
    }

    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Takes one event of the tc programs.
    pub fn take(&mut self, event: TcEvent, now: Instant) {
        match event {
            TcEvent::Flow(flow) => match flow.event {
                event::OPENED => self.open(&flow, now),
                // The refusing packet goes back to the opener of the connection.
                event::RESET | event::ICMP => {
                    let tuple = ConnectionTuple::of(&flow.key, flow.direction != FROM_POD);
                    self.refused.insert(tuple, flow.time, now);
                }
                _ => {}
            },
            TcEvent::Dns(flow, message) => {
                self.names.add_answer(flow.key.ifindex, address(&flow.key.pod), &message, now);
            }
        }
    }

    fn open(&mut self, flow: &FlowEvent, now: Instant) {
        let tuple = ConnectionTuple::of(&flow.key, flow.direction == FROM_POD);
        // Only a SYN opens a TCP connection. The first datagram that is seen may be an answer.
        // The kernel side forgets a quiet UDP flow: the next datagram may be the other side's.
        let first_of_udp = || self.is_certain(&tuple, flow.key.ifindex) && self.opened.time(&tuple.flipped()).is_none();
        if tuple.protocol == packet::TCP || first_of_udp() {
            self.opened.insert(tuple, flow.time, now);
        }
        if !self.table.open(flow, now) {
            self.kernel.forget(&flow.key);
        }
    }

    /// Returns true if the client of this tuple was seen to open the connection; of UDP, within conntrack's timeout before `time`.
    pub fn was_opened(&self, tuple: &ConnectionTuple, time: u64) -> bool {
        let opened = self.opened.time(tuple);
        opened.is_some_and(|opened| tuple.protocol == packet::TCP || time.saturating_sub(opened) < UDP_TIMEOUT)
    }

    /// Notes that a packet was dropped: its connection is not unanswered without a reason.
    pub fn note_drop(&mut self, packet: &Packet, now: Instant) {
        if matches!(packet.headers.protocol, packet::TCP | packet::UDP | packet::SCTP) {
            for tuple in ConnectionTuple::all_of(packet) {
                self.dropped.insert(tuple, packet.time, now);
            }
        }
    }

    /// Notes that drops were lost. For a while no connection is reported as unanswered, because the lost drop may explain it.
    pub fn note_lost_drops(&mut self, now: Instant) {
        self.dropped.mark_incomplete(now);
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
