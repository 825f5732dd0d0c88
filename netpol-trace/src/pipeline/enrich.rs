//! Names both endpoints of a packet's connection, as of the time of the drop. Pure.
//!
//! Policies are evaluated for the connection, not for the packet: from conntrack's original source to the source of its reply. These are the
//! client and the backend that policies are written about, whatever translation (NAT) there is on the way.

use std::net::IpAddr;

use jiff::Timestamp;

use super::opener::{Opener, looks_like_answer};
use crate::cluster::Index;
use crate::cluster::index::{AddressOwner, Moment, PodView};
use crate::model::cluster::Pod;
use crate::model::packet::{self, Conntrack, Packet};
use crate::model::{Address, Basis, EndpointKind, Part, ServiceRef, Str, Verdict, VerdictResult};
use crate::policy::{Connection, PolicyEndpoint, PolicyIdentity, Transport};

/// A packet with both endpoints of its connection named.
#[derive(Debug, Clone)]
pub struct Flow<'a> {
    pub source: FlowEndpoint<'a>,
    pub destination: FlowEndpoint<'a>,
    /// IP protocol number.
    pub protocol: u8,
    /// The packet is a reply: it goes from `destination` to `source`.
    pub reply: bool,
    /// `source` opened the connection. Otherwise nothing shows who did, and `source` sent the packet.
    pub opener_known: bool,
    /// Conntrack had an entry for the packet.
    pub tracked: bool,
    /// Conntrack translated the destination (a service).
    pub dst_nat: bool,
}

/// One endpoint of a connection.
#[derive(Debug, Clone)]
pub struct FlowEndpoint<'a> {
    pub ip: IpAddr,
    pub port: Option<u16>,
    pub identity: Identity<'a>,
    /// The service that the client addressed; destinations only.
    pub service: Option<ServiceRef>,
    /// The address before translation, where it differs.
    pub original: Option<Address>,
}

#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    Pod(PodView<'a>),
    Node(&'a Str),
    /// An address of a service, not of a backend.
    Service,
    External,
    /// Inside the pod network without a known owner.
    Unknown,
    /// The API server has not confirmed in time whether this is a pod's address, or still this pod's.
    Unconfirmed,
    /// Several pods claim the address; the number of them.
    Ambiguous(usize),
    /// The address passed from the first pod to the second at about that time.
    Reused(&'a Pod, &'a Pod),
    /// No pod has the address any more; this pod had it until shortly before.
    Former(&'a Pod),
}

impl Identity<'_> {
    pub fn kind(&self) -> EndpointKind {
        match self {
            Identity::Pod(_) => EndpointKind::Pod,
            Identity::Node(_) => EndpointKind::Node,
            Identity::Service => EndpointKind::Service,
            Identity::External => EndpointKind::External,
            Identity::Unknown
            | Identity::Unconfirmed
            | Identity::Ambiguous(_)
            | Identity::Reused(..)
            | Identity::Former(_) => EndpointKind::Unknown,
        }
    }
}

/// The index as of the first and the last packet that a drop stands for.
pub struct Moments<'a> {
    first: Moment<'a>,
    /// `None` where both packets have the same time.
    last: Option<Moment<'a>>,
}

impl<'a> Moments<'a> {
    pub fn of(index: &'a Index, packet: &Packet, first: Timestamp, last: Timestamp) -> Moments<'a> {
        let addresses = addresses(packet);
        let later = (last > first).then(|| index.at(last, &addresses));
        Moments { first: index.at(first, &addresses), last: later }
    }

    /// Names both endpoints. An address that changed hands between the two packets belongs to nobody.
    pub fn name(&self, packet: &Packet, opener: Opener) -> Flow<'_> {
        let mut flow = name(packet, opener, &self.first);
        if let Some(last) = &self.last {
            flow.hold_throughout(&name(packet, opener, last));
        }
        flow
    }

    /// Returns true if nothing relevant has changed since the first packet.
    pub fn are_current(&self) -> bool {
        self.first.is_as_now() && self.last.as_ref().is_none_or(Moment::is_as_now)
    }
}

/// Returns the addresses that can be an endpoint of the packet's connection, some of them twice.
fn addresses(packet: &Packet) -> [IpAddr; 7] {
    let (source, destination) = (packet.headers.source, packet.headers.destination);
    let tracked = packet.conntrack.map(|ct| [ct.original.source, ct.original.destination, ct.reply.source]);
    let [client, addressed, server] = tracked.unwrap_or([source, destination, destination]);
    let quoted = packet.headers.quoted.map(|quoted| [quoted.source, quoted.destination]);
    let [from, to] = quoted.unwrap_or([source, destination]);
    [source, destination, client, addressed, server, from, to]
}

/// Names both endpoints.
pub fn name<'a>(packet: &Packet, opener: Opener, moment: &'a Moment<'_>) -> Flow<'a> {
    match packet.conntrack {
        Some(conntrack) if opener == Opener::Conntrack => tracked(&conntrack, moment),
        _ => untracked(packet, opener, moment),
    }
}

fn tracked<'a>(conntrack: &Conntrack, moment: &'a Moment<'_>) -> Flow<'a> {
    let Conntrack { original, reply, .. } = conntrack;
    let protocol = original.protocol;
    let has_ports = matches!(protocol, packet::TCP | packet::UDP | packet::SCTP);
    let port = |port: u16| has_ports.then_some(port);
    let mut destination = identify(moment, reply.source, port(reply.source_port));
    if (original.destination, original.destination_port) != (reply.source, reply.source_port) {
        destination.original = Some(Address { ip: original.destination, port: port(original.destination_port) });
    }
    let asked = port(original.destination_port);
    Flow {
        source: identify(moment, original.source, port(original.source_port)),
        destination: with_service(moment.index, destination, protocol, original.destination, asked),
        protocol,
        reply: conntrack.is_reply,
        opener_known: true,
        tracked: true,
        dst_nat: conntrack.dst_nat,
    }
}

/// Names the connection of a packet without the help of conntrack.
fn untracked<'a>(packet: &Packet, opener: Opener, moment: &'a Moment<'_>) -> Flow<'a> {
    let headers = &packet.headers;
    // An ICMP error goes to the source of the packet that it quotes.
    let (from, to, protocol, error) = match headers.quoted {
        Some(quoted) => {
            let source = (quoted.source, Some(quoted.source_port));
            (source, (quoted.destination, Some(quoted.destination_port)), quoted.protocol, true)
        }
        None => {
            let source = (headers.source, headers.source_port);
            (source, (headers.destination, headers.destination_port), headers.protocol, false)
        }
    };
    let flip = match opener {
        Opener::Destination => true,
        Opener::Unknown => error,
        Opener::Conntrack | Opener::Source => false,
    };
    let (source, destination) = if flip { (to, from) } else { (from, to) };
    let backend = identify(moment, destination.0, destination.1);
    Flow {
        source: identify(moment, source.0, source.1),
        destination: with_service(moment.index, backend, protocol, destination.0, destination.1),
        protocol,
        reply: flip != error,
        opener_known: opener != Opener::Unknown,
        tracked: packet.conntrack.is_some(),
        dst_nat: false,
    }
}

pub(crate) fn identify<'a>(moment: &'a Moment<'_>, ip: IpAddr, port: Option<u16>) -> FlowEndpoint<'a> {
    let identity = match moment.owner_of(ip) {
        AddressOwner::Pod(pod) => Identity::Pod(pod),
        AddressOwner::Node(node) => Identity::Node(&node.name),
        AddressOwner::Ambiguous(count) => Identity::Ambiguous(count),
        AddressOwner::Either(one, other) => Identity::Reused(one, other),
        AddressOwner::Former(pod) => Identity::Former(pod),
        AddressOwner::None if moment.index.in_pod_network(ip) => Identity::Unknown,
        AddressOwner::None => Identity::External,
    };
    FlowEndpoint { ip, port, identity, service: None, original: None }
}

/// Adds the service that the client addressed at `ip` and `port`.
pub(crate) fn with_service<'a>(
    index: &'a Index,
    mut endpoint: FlowEndpoint<'a>,
    protocol: u8,
    ip: IpAddr,
    port: Option<u16>,
) -> FlowEndpoint<'a> {
    let Transport::Named(protocol) = Transport::from_number(protocol) else { return endpoint };
    let Some((service, found)) = index.service_at(ip, protocol, port.unwrap_or(0)) else { return endpoint };
    endpoint.service = Some(ServiceRef {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        port: found.map(|p| p.port),
    });
    // The packet still has the service's own address: it was not translated to a backend.
    if endpoint.ip == ip && matches!(endpoint.identity, Identity::External | Identity::Unknown) {
        endpoint.identity = Identity::Service;
    }
    endpoint
}

impl<'a> Flow<'a> {
    /// Returns true if an endpoint may get its name soon. New pods send packets before the API server knows their address.
    pub fn may_be_named_later(&self) -> bool {
        self.endpoints()
            .iter()
            .any(|end| matches!(end.identity, Identity::Unknown | Identity::Unconfirmed | Identity::Former(_)))
    }

    /// Returns true if an endpoint's pod is terminating: its address may already belong to another pod that the index does not know yet.
    pub fn may_have_left(&self) -> bool {
        self.endpoints().iter().any(|end| end.pod().is_some_and(|view| view.pod.terminating && !view.pod.host_network))
    }

    /// Returns true if an endpoint's address belonged to either of two pods and the time does not decide which.
    pub fn is_reused(&self) -> bool {
        self.endpoints().iter().any(|end| matches!(end.identity, Identity::Reused(..)))
    }

    /// Removes names that do not hold for all counted packets. `later` is the flow as of the last packet; the owner at the times between is
    /// unknown.
    pub fn hold_throughout(&mut self, later: &Flow<'a>) {
        for (end, later) in [(&mut self.source, &later.source), (&mut self.destination, &later.destination)] {
            if let (Some(first), Some(last)) = (end.pod(), later.pod())
                && !first.pod.is_same(last.pod)
            {
                end.identity = Identity::Reused(first.pod, last.pod);
            }
        }
    }

    /// Returns true if the ports suggest that the packet is a reply: it goes to a client's port.
    pub fn ports_suggest_reply(&self) -> bool {
        let ports = self.source.port.zip(self.destination.port);
        ports.is_some_and(|(source, destination)| looks_like_answer(source, destination))
    }

    /// Returns true if `source` opened the connection, by evidence or by its port.
    pub fn opener_is_likely(&self) -> bool {
        let ports = self.source.port.zip(self.destination.port);
        self.opener_known || ports.is_some_and(|(source, destination)| looks_like_answer(destination, source))
    }

    /// Returns the same packet as one of a connection that its destination opened.
    pub fn reversed(&self) -> Flow<'a> {
        let plain = |endpoint: &FlowEndpoint<'a>| FlowEndpoint { service: None, original: None, ..endpoint.clone() };
        Flow { source: plain(&self.destination), destination: plain(&self.source), reply: !self.reply, ..*self }
    }

    fn endpoints(&self) -> [&FlowEndpoint<'a>; 2] {
        [&self.source, &self.destination]
    }

    /// Returns the connection that the policies are evaluated for, as of `at`.
    pub fn connection(&self, at: Timestamp) -> Connection<'a> {
        Connection {
            source: self.source.as_end(),
            destination: self.destination.as_end(),
            transport: Transport::from_number(self.protocol),
            port: self.destination.port,
            at: Some(at),
        }
    }
}

/// Adds to a verdict what limits it: an address that changed hands, and `stale` sources.
pub fn qualify(verdict: &mut Part<Verdict>, flow: &Flow<'_>, stale: &[String]) {
    if flow.is_reused() && verdict.result == VerdictResult::Undetermined {
        verdict.to_mut().basis = Basis::IpReused.into();
    }
    if !stale.is_empty() {
        let verdict = verdict.to_mut();
        if verdict.basis == Basis::NetworkPolicyV1.as_str() {
            verdict.basis = Basis::Stale.into();
        }
        verdict.notes.push(format!("not in sync, so what changed lately is not known: {}", stale.join(", ")));
    }
}

impl<'a> FlowEndpoint<'a> {
    /// Returns address and port for people.
    pub(super) fn address(&self) -> String {
        match self.port {
            Some(port) => std::net::SocketAddr::new(self.ip, port).to_string(),
            None => self.ip.to_string(),
        }
    }

    fn as_end(&self) -> PolicyEndpoint<'a> {
        let identity = match self.identity {
            Identity::Pod(pod) => PolicyIdentity::Pod(pod),
            Identity::Node(node) => PolicyIdentity::Node(node),
            Identity::External | Identity::Service => PolicyIdentity::External,
            Identity::Unknown
            | Identity::Unconfirmed
            | Identity::Ambiguous(_)
            | Identity::Reused(..)
            | Identity::Former(_) => PolicyIdentity::Unknown,
        };
        PolicyEndpoint { ip: Some(self.ip), identity }
    }

    pub fn pod(&self) -> Option<PodView<'a>> {
        match self.identity {
            Identity::Pod(pod) => Some(pod),
            _ => None,
        }
    }
}
