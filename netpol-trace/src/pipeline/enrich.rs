//! Names both endpoints of a packet's connection, as of the time of the drop. Pure.
//!
//! Policies are evaluated for the connection, not for the packet: from conntrack's original source to the source of its reply. These are the
//! client and the backend that policies are written about, whatever translation (NAT) there is on the way.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::cluster::Index;
use crate::cluster::index::{AddressOwner, Moment, PodView};
use crate::model::cluster::Pod;
use crate::model::packet::Packet;
use crate::model::{Address, EndpointKind, Part, ServiceRef, Str, Verdict, VerdictResult};
use crate::policy::{Connection, PolicyEndpoint, PolicyIdentity, Transport};

/// A packet with both endpoints of its connection named.
#[derive(Debug, Clone)]
pub struct Flow<'a> {
    pub source: Named<'a>,
    pub destination: Named<'a>,
    /// IP protocol number.
    pub protocol: u8,
    /// The packet is a reply: it goes from `destination` to `source`.
    pub reply: bool,
    /// Conntrack had an entry for the packet.
    pub tracked: bool,
    /// Conntrack translated the destination (a service).
    pub dst_nat: bool,
}

/// One endpoint of a connection.
#[derive(Debug, Clone)]
pub struct Named<'a> {
    pub ip: IpAddr,
    pub port: Option<u16>,
    pub owner: OwnedBy<'a>,
    /// The service that the client addressed; destinations only.
    pub service: Option<ServiceRef>,
    /// The address before translation, where it differs.
    pub original: Option<Address>,
}

#[derive(Debug, Clone, Copy)]
pub enum OwnedBy<'a> {
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

impl OwnedBy<'_> {
    pub fn kind(&self) -> EndpointKind {
        match self {
            OwnedBy::Pod(_) => EndpointKind::Pod,
            OwnedBy::Node(_) => EndpointKind::Node,
            OwnedBy::Service => EndpointKind::Service,
            OwnedBy::External => EndpointKind::External,
            OwnedBy::Unknown
            | OwnedBy::Unconfirmed
            | OwnedBy::Ambiguous(_)
            | OwnedBy::Reused(..)
            | OwnedBy::Former(_) => EndpointKind::Unknown,
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
    pub fn name(&self, packet: &Packet) -> Flow<'_> {
        let mut flow = name(packet, &self.first);
        if let Some(last) = &self.last {
            flow.hold_throughout(&name(packet, last));
        }
        flow
    }

    /// Returns true if nothing relevant has changed since the first packet.
    pub fn are_current(&self) -> bool {
        self.first.is_as_now() && self.last.as_ref().is_none_or(Moment::is_as_now)
    }
}

/// Returns the addresses that can be an endpoint of the packet's connection, some of them twice.
fn addresses(packet: &Packet) -> [IpAddr; 5] {
    let (source, destination) = (packet.headers.source, packet.headers.destination);
    let tracked = packet.conntrack.map(|ct| [ct.original.source, ct.original.destination, ct.reply.source]);
    let [client, asked, server] = tracked.unwrap_or([source, destination, destination]);
    [source, destination, client, asked, server]
}

/// Names both endpoints.
pub fn name<'a>(packet: &Packet, moment: &'a Moment<'_>) -> Flow<'a> {
    let index = moment.index;
    let headers = &packet.headers;
    // Conntrack relates an ICMP error to a connection, but the error is not a packet of that connection.
    let conntrack = packet.conntrack.filter(|ct| ct.original.protocol == headers.protocol);
    let ports = |source, destination| match headers.protocol {
        crate::model::packet::TCP | crate::model::packet::UDP | crate::model::packet::SCTP => {
            (Some(source), Some(destination))
        }
        _ => (None, None),
    };
    let Some(ct) = conntrack else {
        return Flow {
            source: end(moment, headers.source, headers.source_port),
            destination: with_service(
                index,
                end(moment, headers.destination, headers.destination_port),
                headers.protocol,
                headers.destination,
                headers.destination_port,
            ),
            protocol: headers.protocol,
            reply: false,
            tracked: packet.conntrack.is_some(),
            dst_nat: false,
        };
    };
    let (source_port, asked_port) = ports(ct.original.source_port, ct.original.destination_port);
    let (port, _) = ports(ct.reply.source_port, 0);
    let mut destination = end(moment, ct.reply.source, port);
    if (ct.original.destination, asked_port) != (ct.reply.source, port) {
        destination.original = Some(Address { ip: ct.original.destination, port: asked_port });
    }
    Flow {
        source: end(moment, ct.original.source, source_port),
        destination: with_service(index, destination, headers.protocol, ct.original.destination, asked_port),
        protocol: headers.protocol,
        reply: ct.is_reply,
        tracked: true,
        dst_nat: ct.dst_nat,
    }
}

pub(crate) fn end<'a>(moment: &'a Moment<'_>, ip: IpAddr, port: Option<u16>) -> Named<'a> {
    let owner = match moment.owner_of(ip) {
        AddressOwner::Pod(pod) => OwnedBy::Pod(pod),
        AddressOwner::Node(node) => OwnedBy::Node(&node.name),
        AddressOwner::Ambiguous(count) => OwnedBy::Ambiguous(count),
        AddressOwner::Either(one, other) => OwnedBy::Reused(one, other),
        AddressOwner::Former(pod) => OwnedBy::Former(pod),
        AddressOwner::None if moment.index.in_pod_network(ip) => OwnedBy::Unknown,
        AddressOwner::None => OwnedBy::External,
    };
    Named { ip, port, owner, service: None, original: None }
}

/// Adds the service that the client addressed at `ip` and `port`.
pub(crate) fn with_service<'a>(
    index: &'a Index,
    mut named: Named<'a>,
    protocol: u8,
    ip: IpAddr,
    port: Option<u16>,
) -> Named<'a> {
    let Transport::Named(protocol) = Transport::from_number(protocol) else { return named };
    let Some((service, found)) = index.service_at(ip, protocol, port.unwrap_or(0)) else { return named };
    named.service = Some(ServiceRef {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        port: found.map(|p| p.port),
    });
    // The packet still has the service's own address: it was not translated to a backend.
    if named.ip == ip && matches!(named.owner, OwnedBy::External | OwnedBy::Unknown) {
        named.owner = OwnedBy::Service;
    }
    named
}

impl<'a> Flow<'a> {
    /// Returns true if an endpoint may get its name soon. New pods send packets before the API server knows their address.
    pub fn may_be_named_later(&self) -> bool {
        self.ends().iter().any(|end| matches!(end.owner, OwnedBy::Unknown | OwnedBy::Unconfirmed | OwnedBy::Former(_)))
    }

    /// Returns true if an endpoint's pod is terminating: its address may already belong to another pod that the index does not know yet.
    pub fn may_have_left(&self) -> bool {
        self.ends().iter().any(|end| end.pod().is_some_and(|view| view.pod.terminating && !view.pod.host_network))
    }

    /// Returns true if an endpoint's address belonged to either of two pods and the time does not decide which.
    pub fn is_reused(&self) -> bool {
        self.ends().iter().any(|end| matches!(end.owner, OwnedBy::Reused(..)))
    }

    /// Removes names that do not hold for all counted packets. `later` is the flow as of the last packet; the owner at the times between is
    /// unknown.
    pub fn hold_throughout(&mut self, later: &Flow<'a>) {
        for (end, later) in [(&mut self.source, &later.source), (&mut self.destination, &later.destination)] {
            if let (Some(first), Some(last)) = (end.pod(), later.pod())
                && !first.pod.is_same(last.pod)
            {
                end.owner = OwnedBy::Reused(first.pod, last.pod);
            }
        }
    }

    fn ends(&self) -> [&Named<'a>; 2] {
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
        verdict.to_mut().basis = "ip_reused".into();
    }
    if !stale.is_empty() {
        let verdict = verdict.to_mut();
        if verdict.basis == "networkpolicy_v1" {
            verdict.basis = "stale".into();
        }
        verdict.notes.push(format!("not in sync, so what changed lately is not known: {}", stale.join(", ")));
    }
}

impl<'a> Named<'a> {
    fn as_end(&self) -> PolicyEndpoint<'a> {
        let identity = match self.owner {
            OwnedBy::Pod(pod) => PolicyIdentity::Pod(pod),
            OwnedBy::Node(node) => PolicyIdentity::Node(node),
            OwnedBy::External | OwnedBy::Service => PolicyIdentity::External,
            OwnedBy::Unknown
            | OwnedBy::Unconfirmed
            | OwnedBy::Ambiguous(_)
            | OwnedBy::Reused(..)
            | OwnedBy::Former(_) => PolicyIdentity::Unknown,
        };
        PolicyEndpoint { ip: Some(self.ip), identity }
    }

    pub fn pod(&self) -> Option<PodView<'a>> {
        match self.owner {
            OwnedBy::Pod(pod) => Some(pod),
            _ => None,
        }
    }
}
