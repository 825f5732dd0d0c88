//! Adds to a drop's record what the pods' interfaces show.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::cluster::Index;
use crate::cluster::index::{AddressOwner, PodView};
use crate::model::packet::Packet;
use crate::model::{Action, Address};
use crate::pipeline::connections::{AddressPort, ConnectionTuple, Flows, KernelFlows};
use crate::pipeline::enrich;
use crate::record::Drop;

/// Largest time between a rule's RST or ICMP error and the drop of the rejected packet: the kernel sends the answer right before it.
const REJECTED_WITHIN: Duration = Duration::from_millis(5);

/// Where the dropped packet came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The interface by which the packet came in.
    pub iif: u32,
    pub netns: Option<u32>,
}

impl<K: KernelFlows> Flows<K> {
    /// Adds what is certain: the address that the client used and its names, a spoofed source, a reject.
    pub fn annotate(&mut self, drop: &mut Drop, packet: &Packet, origin: Origin, index: &Index, now: Instant) {
        if packet.conntrack.is_none() {
            self.add_original(drop, packet, index);
        }
        if drop.action == Action::Unknown && self.was_rejected(packet) {
            drop.action = Action::Reject;
        }
        drop.spoofed = self.is_spoofed(packet, origin, index);
        let addressed = drop.destination.original.as_ref().map_or(drop.destination.ip, |original| original.ip);
        drop.destination.names = self.names_of(drop.source.ip, addressed, now);
    }

    /// Returns the DNS names under which the pod at `pod` knows `address`.
    pub fn names_of(&self, pod: IpAddr, address: IpAddr, now: Instant) -> Vec<String> {
        self.names.of(pod, address, now)
    }

    /// Adds the original destination after a translation that conntrack does not know: the client's own interface saw it. It is certainly this
    /// connection if the client's port has one destination only, and that is a service with this backend.
    fn add_original(&self, drop: &mut Drop, packet: &Packet, index: &Index) {
        let Some((client, server)) = endpoints(packet) else { return };
        let protocol = packet.headers.protocol;
        let mut sent = self.table.of_client(client, protocol).filter(|(_, open)| open.from_pod);
        let (Some(((tuple, _), _)), None) = (sent.next(), sent.next()) else { return };
        if tuple.server == server || !is_backend(index, protocol, tuple.server, server) {
            return;
        }
        let (ip, port) = tuple.server;
        let now = index.now();
        let addressed = enrich::with_service(index, enrich::identify(&now, ip, Some(port)), protocol, ip, Some(port));
        drop.destination.original = Some(Address { ip, port: Some(port) });
        drop.destination.service = addressed.service;
    }

    fn was_rejected(&self, packet: &Packet) -> bool {
        ConnectionTuple::all_of(packet).any(|tuple| {
            let refused = self.refused.time(&tuple);
            refused.is_some_and(|time| packet.time.abs_diff(time) < REJECTED_WITHIN.as_nanos() as u64)
        })
    }

    /// Returns true if a pod sent the packet with a source address of another. That is certain if the pod behind the interface is known: its own
    /// network namespace has an address that the cluster knows as one pod's.
    fn is_spoofed(&self, packet: &Packet, origin: Origin, index: &Index) -> bool {
        let source = packet.headers.source;
        if source.is_unspecified() || is_link_local(source) {
            return false;
        }
        let Some(interface) = self.interface_of(packet, origin) else { return false };
        let addresses = self.kernel.addresses(interface, source);
        let Some(pod) = pod_behind(&addresses, index) else { return false };
        let of_this_family = pod.pod.ips.iter().any(|ip| ip.is_ipv4() == source.is_ipv4());
        if !of_this_family || pod.pod.ips.contains(&source) {
            return false;
        }
        // The pod has the address although the cluster does not know it: a second network or a virtual address.
        !addresses.contains(&source) || matches!(index.owner_of(source), AddressOwner::Pod(_) | AddressOwner::Node(_))
    }

    /// The pod's interface by which the packet came into this network namespace.
    fn interface_of(&self, packet: &Packet, origin: Origin) -> Option<u32> {
        if origin.netns == Some(self.kernel.netns()) && self.kernel.interface(origin.iif).is_some() {
            return Some(origin.iif);
        }
        // Behind a bridge the packet's device is the bridge; the first packet of the connection was seen at the port.
        let (client, server) = endpoints(packet)?;
        let tuple = ConnectionTuple { client, protocol: packet.headers.protocol, server };
        let mut sent = self.table.of(tuple).filter(|(_, open)| open.from_pod);
        match (sent.next(), sent.next()) {
            (Some(((_, interface), _)), None) => Some(*interface),
            _ => None,
        }
    }
}

fn endpoints(packet: &Packet) -> Option<(AddressPort, AddressPort)> {
    let headers = &packet.headers;
    let (source, destination) = headers.source_port.zip(headers.destination_port)?;
    Some(((headers.source, source), (headers.destination, destination)))
}

/// Returns the only pod that claims one of these addresses.
fn pod_behind<'a>(addresses: &[IpAddr], index: &'a Index) -> Option<PodView<'a>> {
    let mut found: Option<PodView<'a>> = None;
    for address in addresses {
        match index.owner_of(*address) {
            AddressOwner::Pod(pod) if found.is_none_or(|f| std::sync::Arc::ptr_eq(f.pod, pod.pod)) => found = Some(pod),
            AddressOwner::Pod(_) | AddressOwner::Ambiguous(_) => return None,
            _ => {}
        }
    }
    found
}

/// Returns true if `backend` is an endpoint of the service at `addressed`.
fn is_backend(index: &Index, protocol: u8, addressed: AddressPort, backend: AddressPort) -> bool {
    let crate::policy::Transport::Named(named) = crate::policy::Transport::from_number(protocol) else {
        return false;
    };
    let Some((service, _)) = index.service_at(addressed.0, named, addressed.1) else { return false };
    let Some(namespace) = index.namespace(&service.namespace) else { return false };
    namespace.slices().filter(|slice| slice.service.as_deref() == Some(&*service.name)).any(|slice| {
        slice.ports.iter().any(|port| port.protocol == named && port.port.is_none_or(|port| port == backend.1))
            && slice.endpoints.iter().any(|endpoint| endpoint.ips.contains(&backend.0))
    })
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
