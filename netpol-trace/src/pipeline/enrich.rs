//! (packet, index) → flow: both ends named, as of what held when the packet was dropped. Pure.
//!
//! What is judged is the connection, not the packet: conntrack's original source, to the source of its reply. That is the
//! client and the backend that policies are written about, before and after every translation on the way.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::cluster::Index;
use crate::cluster::index::{Moment, Owner, PodView};
use crate::model::cluster::Pod;
use crate::model::packet::Packet;
use crate::model::{Address, EndpointKind, Part, ServiceRef, Str, Verdict, VerdictResult};
use crate::policy::{Connection, End, Transport, Who};

/// A packet with both ends of its connection named.
#[derive(Debug, Clone)]
pub struct Flow<'a> {
    pub source: Named<'a>,
    pub destination: Named<'a>,
    /// IP protocol number.
    pub protocol: u8,
    /// The packet goes from `destination` to `source`.
    pub reply: bool,
    /// Conntrack knew the packet.
    pub tracked: bool,
    /// Conntrack translated the destination (a service).
    pub dst_nat: bool,
}

/// One end.
#[derive(Debug, Clone)]
pub struct Named<'a> {
    pub ip: IpAddr,
    pub port: Option<u16>,
    pub owner: OwnedBy<'a>,
    /// Of a destination: the service that the client asked for.
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
    /// The source can't say yet, or not in time, whether this is a pod's address, or still this pod's.
    Unconfirmed,
    /// So many pods claim the address.
    Ambiguous(usize),
    /// The address passed from the one to the other at about that time.
    Reused(&'a Pod, &'a Pod),
    /// Nobody's any more; this pod's until shortly before.
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

/// The addresses that can be an end of the packet's connection; some of them more than once.
fn addresses(packet: &Packet) -> [IpAddr; 5] {
    let (source, destination) = (packet.headers.source, packet.headers.destination);
    let tracked = packet.conntrack.map(|ct| [ct.original.source, ct.original.destination, ct.reply.source]);
    let [client, asked, server] = tracked.unwrap_or([source, destination, destination]);
    [source, destination, client, asked, server]
}

/// Names both ends.
pub fn name<'a>(packet: &Packet, moment: &'a Moment<'_>) -> Flow<'a> {
    let index = moment.index;
    let headers = &packet.headers;
    // An ICMP error that conntrack relates to a connection is not of that connection.
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
        Owner::Pod(pod) => OwnedBy::Pod(pod),
        Owner::Node(node) => OwnedBy::Node(&node.name),
        Owner::Ambiguous(count) => OwnedBy::Ambiguous(count),
        Owner::Either(one, other) => OwnedBy::Reused(one, other),
        Owner::Former(pod) => OwnedBy::Former(pod),
        Owner::None if moment.index.in_pod_network(ip) => OwnedBy::Unknown,
        Owner::None => OwnedBy::External,
    };
    Named { ip, port, owner, service: None, original: None }
}

/// Adds the service that the client asked for at `ip` and `port`.
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
    // The packet still goes to the service's own address: no backend took it.
    if named.ip == ip && matches!(named.owner, OwnedBy::External | OwnedBy::Unknown) {
        named.owner = OwnedBy::Service;
    }
    named
}

impl<'a> Flow<'a> {
    /// Whether an end may get its name soon: new pods send before the API knows their address.
    pub fn may_be_named_later(&self) -> bool {
        self.ends().iter().any(|end| matches!(end.owner, OwnedBy::Unknown | OwnedBy::Unconfirmed | OwnedBy::Former(_)))
    }

    /// Whether an end's pod may be gone already, and its address another's, without the source having told so.
    pub fn may_have_left(&self) -> bool {
        self.ends().iter().any(|end| end.pod().is_some_and(|view| view.pod.terminating && !view.pod.host_network))
    }

    /// Whether nobody can know which of two pods had an end's address.
    pub fn is_reused(&self) -> bool {
        self.ends().iter().any(|end| matches!(end.owner, OwnedBy::Reused(..)))
    }

    /// Takes back names that don't hold for all packets of a count, `later` being the flow as of the last of them: whose the
    /// others were nobody knows.
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

    /// What the verdict judges, as of `at`.
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

/// Says how far a verdict can be relied on: an address that changed hands, and `stale` sources.
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
    fn as_end(&self) -> End<'a> {
        let who = match self.owner {
            OwnedBy::Pod(pod) => Who::Pod(pod),
            OwnedBy::Node(node) => Who::Node(node),
            OwnedBy::External | OwnedBy::Service => Who::External,
            OwnedBy::Unknown
            | OwnedBy::Unconfirmed
            | OwnedBy::Ambiguous(_)
            | OwnedBy::Reused(..)
            | OwnedBy::Former(_) => Who::Unknown,
        };
        End { ip: Some(self.ip), who }
    }

    pub fn pod(&self) -> Option<PodView<'a>> {
        match self.owner {
            OwnedBy::Pod(pod) => Some(pod),
            _ => None,
        }
    }
}
