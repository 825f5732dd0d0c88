//! (packet, index) → flow: both ends named, as of what the index holds. Pure.
//!
//! What is judged is the connection, not the packet: conntrack's original source, to the source of its reply. That is the
//! client and the backend that policies are written about, before and after every translation on the way.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::cluster::Index;
use crate::cluster::index::{Owner, PodView};
use crate::packet::{self, Packet};
use crate::record::{Address, EndpointKind, ServiceRef};
use crate::verdict::{Connection, End, Transport, Who};

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
    Node(&'a str),
    /// An address of a service, not of a backend.
    Service,
    External,
    /// Inside the pod network without a known owner.
    Unknown,
    /// So many pods claim the address.
    Ambiguous(usize),
}

impl OwnedBy<'_> {
    pub fn kind(&self) -> EndpointKind {
        match self {
            OwnedBy::Pod(_) => EndpointKind::Pod,
            OwnedBy::Node(_) => EndpointKind::Node,
            OwnedBy::Service => EndpointKind::Service,
            OwnedBy::External => EndpointKind::External,
            OwnedBy::Unknown | OwnedBy::Ambiguous(_) => EndpointKind::Unknown,
        }
    }
}

/// Names both ends.
pub fn name<'a>(packet: &Packet, index: &'a Index) -> Flow<'a> {
    let headers = &packet.headers;
    // An ICMP error that conntrack relates to a connection is not of that connection.
    let conntrack = packet.conntrack.filter(|ct| ct.original.protocol == headers.protocol);
    let ports = |source, destination| match headers.protocol {
        packet::TCP | packet::UDP | packet::SCTP => (Some(source), Some(destination)),
        _ => (None, None),
    };
    let Some(ct) = conntrack else {
        return Flow {
            source: end(index, headers.source, headers.source_port),
            destination: with_service(
                index,
                end(index, headers.destination, headers.destination_port),
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
    let mut destination = end(index, ct.reply.source, port);
    if (ct.original.destination, asked_port) != (ct.reply.source, port) {
        destination.original = Some(Address { ip: ct.original.destination, port: asked_port });
    }
    Flow {
        source: end(index, ct.original.source, source_port),
        destination: with_service(index, destination, headers.protocol, ct.original.destination, asked_port),
        protocol: headers.protocol,
        reply: ct.is_reply,
        tracked: true,
        dst_nat: ct.dst_nat,
    }
}

pub(crate) fn end(index: &Index, ip: IpAddr, port: Option<u16>) -> Named<'_> {
    let owner = match index.owner_of(ip) {
        Owner::Pod(pod) => OwnedBy::Pod(pod),
        Owner::Node(node) => OwnedBy::Node(&node.name),
        Owner::Ambiguous(count) => OwnedBy::Ambiguous(count),
        Owner::None if index.in_pod_network(ip) => OwnedBy::Unknown,
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
        namespace: service.namespace.to_string(),
        name: service.name.to_string(),
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
        [&self.source, &self.destination].iter().any(|end| matches!(end.owner, OwnedBy::Unknown))
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

impl<'a> Named<'a> {
    fn as_end(&self) -> End<'a> {
        let who = match self.owner {
            OwnedBy::Pod(pod) => Who::Pod(pod),
            OwnedBy::Node(node) => Who::Node(node),
            OwnedBy::External | OwnedBy::Service => Who::External,
            OwnedBy::Unknown | OwnedBy::Ambiguous(_) => Who::Unknown,
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
