//! Matches one rule, peer or port: yes, no or not known, and on which assumptions.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::Index;
use crate::cluster::index::NamespaceEntry;
use crate::model::cluster::{
    Direction, Labels, Operator, Peer, Pod, Policy, PortMatch, PortSpec, Requirement, Rule, Selector, Service,
};
use crate::policy::{CniOptions, Connection, PolicyEndpoint, PolicyIdentity, Transport};

/// The label that the API server puts on every namespace (KEP-2161): known even when the object is not.
pub(super) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The CNI-dependent points that a result rests on, as set in [`CniOptions`]. A bit set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Assumptions(u8);

impl Assumptions {
    pub const NOTHING: Assumptions = Assumptions(0);
    /// An `ipBlock` was compared with a pod's address.
    pub const IPBLOCK: Assumptions = Assumptions(1);
    /// A hostNetwork pod was treated as a pod, or as its node.
    pub const HOST_NETWORK: Assumptions = Assumptions(2);
    /// Traffic between a pod and its own node.
    pub const OWN_NODE: Assumptions = Assumptions(4);
    /// ICMP or another protocol without a name in policies.
    pub const OTHER_PROTOCOL: Assumptions = Assumptions(8);
    /// A named port that only a native sidecar declares.
    pub const SIDECAR_PORT: Assumptions = Assumptions(16);

    pub fn contains(self, other: Assumptions) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn is_nothing(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub fn and(self, other: Assumptions) -> Assumptions {
        Assumptions(self.0 | other.0)
    }
}

/// Why the policies alone do not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UndeterminedReason {
    /// The owner of an endpoint's address is not known.
    UnknownEndpoint,
    /// The destination port is not known.
    UnknownPort,
    /// The index has no object for the namespace, so its labels are not known.
    NamespaceLabels,
    HostNetwork,
    /// `ipBlock` against a pod's address.
    IpBlock,
    OwnNode,
    Icmp,
    Protocol,
    /// The destination is a service's address: policy acts on the backend, which is not known.
    ServiceAddress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    No(Assumptions),
    Maybe(UndeterminedReason),
    Yes(Assumptions),
}

impl Match {
    pub(super) const NO: Match = Match::No(Assumptions::NOTHING);
    pub(super) const YES: Match = Match::Yes(Assumptions::NOTHING);

    fn from_bool(matches: bool) -> Match {
        if matches { Match::YES } else { Match::NO }
    }

    pub(super) fn and(self, other: Match) -> Match {
        match (self, other) {
            (Match::No(a), _) | (_, Match::No(a)) => Match::No(a),
            (Match::Maybe(reason), _) | (_, Match::Maybe(reason)) => Match::Maybe(reason),
            (Match::Yes(a), Match::Yes(b)) => Match::Yes(a.and(b)),
        }
    }

    pub(super) fn or(self, other: Match) -> Match {
        match (self, other) {
            (Match::Yes(a), Match::Yes(b)) => Match::Yes(if a.is_nothing() { a } else { b }),
            (yes @ Match::Yes(_), _) | (_, yes @ Match::Yes(_)) => yes,
            (Match::Maybe(reason), _) | (_, Match::Maybe(reason)) => Match::Maybe(reason),
            (Match::No(a), Match::No(b)) => Match::No(a.and(b)),
        }
    }
}

/// Compares rules with one direction of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matcher<'o, 'a> {
    pub connection: Connection<'a>,
    pub direction: Direction,
    pub options: &'o CniOptions,
    /// The destination address is a service's.
    pub to_service: bool,
}

impl<'o, 'a> Matcher<'o, 'a> {
    pub(super) fn new(
        index: &Index,
        connection: &Connection<'a>,
        options: &'o CniOptions,
        direction: Direction,
    ) -> Matcher<'o, 'a> {
        let to_service = is_service_address(index, connection);
        Matcher { connection: *connection, direction, options, to_service }
    }

    /// The endpoint that `from` or `to` selects.
    pub(super) fn peer(&self) -> &PolicyEndpoint<'a> {
        match self.direction {
            Direction::Ingress => &self.connection.source,
            Direction::Egress => &self.connection.destination,
        }
    }

    pub(super) fn rule(&self, policy: &Policy, rule: &Rule) -> Match {
        // Ports first: cheaper to compare, and the most frequent miss.
        match self.ports(rule) {
            no @ Match::No(_) => no,
            ports => ports.and(self.peers(policy, rule)),
        }
    }

    /// A missing and an empty list both mean no restriction.
    pub(super) fn peers(&self, policy: &Policy, rule: &Rule) -> Match {
        match rule.peers.as_deref() {
            None | Some([]) => Match::YES,
            Some(peers) => any(peers, |peer| self.peer_matches(policy, peer)),
        }
    }

    pub(super) fn ports(&self, rule: &Rule) -> Match {
        match rule.ports.as_deref() {
            None | Some([]) => Match::YES,
            Some(ports) => any(ports, |port| self.port_matches(port)),
        }
    }

    pub(super) fn peer_matches(&self, policy: &Policy, peer: &Peer) -> Match {
        match peer {
            Peer::Pods { namespaces, pods } => {
                self.namespace_matches(policy, namespaces.as_ref()).and(self.labels_match(pods.as_ref()))
            }
            Peer::Block { cidr, except } => self.block_matches(cidr, except),
        }
    }

    /// The namespace half of a selector peer: without a namespaceSelector, the policy's own namespace.
    pub(super) fn namespace_matches(&self, policy: &Policy, selector: Option<&Selector>) -> Match {
        let view = match self.selectable() {
            Ok(view) => view,
            Err(no_pod) => return no_pod,
        };
        let matches = match selector {
            None => Match::from_bool(*view.pod.namespace == *policy.namespace),
            Some(selector) => namespace_labels_match(selector, &view.pod.namespace, view.namespace),
        };
        matches.and(self.as_selected(view.pod))
    }

    /// The pod half: without a podSelector, every pod.
    pub(super) fn labels_match(&self, selector: Option<&Selector>) -> Match {
        let view = match self.selectable() {
            Ok(view) => view,
            Err(no_pod) => return no_pod,
        };
        Match::from_bool(selector.is_none_or(|s| s.matches(&view.pod.labels))).and(self.as_selected(view.pod))
    }

    /// The peer, where it is a pod: selectors select nothing else.
    fn selectable(&self) -> Result<&crate::cluster::index::PodView<'a>, Match> {
        match &self.peer().identity {
            PolicyIdentity::Pod(view) => Ok(view),
            PolicyIdentity::Unknown => Err(Match::Maybe(UndeterminedReason::UnknownEndpoint)),
            PolicyIdentity::External if self.to_service => Err(Match::Maybe(UndeterminedReason::ServiceAddress)),
            PolicyIdentity::Node(_) | PolicyIdentity::External => Err(Match::NO),
        }
    }

    /// Whether a selector that matches the pod's labels selects it: to some CNIs a hostNetwork pod looks like its node.
    fn as_selected(&self, pod: &Pod) -> Match {
        match (pod.host_network, self.options.host_network_is_pod) {
            (false, _) => Match::YES,
            (true, None) => Match::Maybe(UndeterminedReason::HostNetwork),
            (true, Some(true)) => Match::Yes(Assumptions::HOST_NETWORK),
            (true, Some(false)) => Match::No(Assumptions::HOST_NETWORK),
        }
    }

    pub(super) fn block_matches(&self, cidr: &IpNet, except: &[IpNet]) -> Match {
        let endpoint = self.peer();
        let inside = |ip: &IpAddr| in_block(cidr, except, *ip);
        let is_inside = match (&endpoint.ip, &endpoint.identity) {
            (Some(ip), _) => inside(ip),
            (None, PolicyIdentity::Pod(view)) => view.pod.ips.iter().any(inside),
            (None, _) => return Match::Maybe(UndeterminedReason::UnknownEndpoint),
        };
        if !is_inside {
            return if self.to_service { Match::Maybe(UndeterminedReason::ServiceAddress) } else { Match::NO };
        }
        match (&endpoint.identity, self.options.ipblock_matches_pods) {
            (PolicyIdentity::External, _) if self.to_service => Match::Maybe(UndeterminedReason::ServiceAddress),
            (PolicyIdentity::External | PolicyIdentity::Node(_), _) => Match::YES,
            (PolicyIdentity::Pod(view), _) if view.pod.host_network => Match::YES,
            (PolicyIdentity::Pod(_), Some(true)) => Match::Yes(Assumptions::IPBLOCK),
            (PolicyIdentity::Pod(_), Some(false)) => Match::No(Assumptions::IPBLOCK),
            (PolicyIdentity::Pod(_), None) => Match::Maybe(UndeterminedReason::IpBlock),
            // The address lies in the block, whether it is a pod's or not.
            (PolicyIdentity::Unknown, Some(true)) => Match::YES,
            (PolicyIdentity::Unknown, _) => Match::Maybe(UndeterminedReason::UnknownEndpoint),
        }
    }

    pub(super) fn port_matches(&self, want: &PortMatch) -> Match {
        match self.connection.transport {
            Transport::Named(protocol) if protocol == want.protocol => {}
            _ => return Match::NO,
        }
        if self.to_service && want.port != PortSpec::Any {
            // Policy sees the backend's port, not the service's.
            return Match::Maybe(UndeterminedReason::ServiceAddress);
        }
        match (&want.port, self.connection.port) {
            (PortSpec::Any, _) => Match::YES,
            (PortSpec::Range(first, last), Some(port)) => Match::from_bool((*first..=*last).contains(&port)),
            (PortSpec::Named(name), port) => self.named_port_matches(want, name, port),
            (PortSpec::Range(..), None) => Match::Maybe(UndeterminedReason::UnknownPort),
        }
    }

    /// In both directions the destination pod resolves a port name, together with the protocol. Nothing else has port names.
    fn named_port_matches(&self, want: &PortMatch, name: &str, port: Option<u16>) -> Match {
        let view = match &self.connection.destination.identity {
            PolicyIdentity::Pod(view) => view,
            PolicyIdentity::Unknown => return Match::Maybe(UndeterminedReason::UnknownEndpoint),
            PolicyIdentity::Node(_) | PolicyIdentity::External => return Match::NO,
        };
        let declared = |p: &&crate::model::cluster::ContainerPort| {
            p.protocol == want.protocol && p.name.as_deref() == Some(name) && port.is_none_or(|port| p.port == port)
        };
        let mut ports = view.pod.ports.iter().filter(declared).peekable();
        if ports.peek().is_none() {
            return Match::NO;
        }
        if port.is_none() {
            return Match::Maybe(UndeterminedReason::UnknownPort);
        }
        let by_name = if ports.all(|p| p.sidecar) { Match::Yes(Assumptions::SIDECAR_PORT) } else { Match::YES };
        // The subject of an ingress rule is treated as a pod already.
        if self.direction == Direction::Egress { by_name.and(self.as_selected(view.pod)) } else { by_name }
    }
}

fn any<T>(items: &[T], matches: impl Fn(&T) -> Match) -> Match {
    let mut best = Match::NO;
    for item in items {
        best = best.or(matches(item));
        if best == Match::YES {
            break;
        }
    }
    best
}

fn namespace_labels_match(selector: &Selector, name: &str, namespace: &NamespaceEntry) -> Match {
    let mut best = Match::YES;
    for requirement in &selector.requirements {
        best = best.and(namespace_requirement(requirement, name, namespace));
        if best == Match::NO {
            break;
        }
    }
    best
}

/// Matches one requirement. A namespace without an object in the index still has a name, and with it one label.
pub(super) fn namespace_requirement(requirement: &Requirement, name: &str, namespace: &NamespaceEntry) -> Match {
    if let Some(labels) = namespace.labels() {
        return Match::from_bool(requirement.matches(labels));
    }
    if *requirement.key != *NAME_LABEL {
        return Match::Maybe(UndeterminedReason::NamespaceLabels);
    }
    Match::from_bool(match &requirement.operator {
        Operator::In(values) => values.iter().any(|v| **v == *name),
        Operator::NotIn(values) => !values.iter().any(|v| **v == *name),
        Operator::Exists => true,
        Operator::DoesNotExist => false,
    })
}

/// Whether the port item holds the number, whatever the protocol. A name holds none.
pub(super) fn covers(want: &PortMatch, port: u16) -> bool {
    match &want.port {
        PortSpec::Any => true,
        PortSpec::Range(first, last) => (*first..=*last).contains(&port),
        PortSpec::Named(_) => false,
    }
}

/// Whether the service's selector matches the labels. A service without selector selects no pod.
pub(super) fn selects(service: &Service, labels: &Labels) -> bool {
    service.selector.as_ref().is_some_and(|selector| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// Whether `ip` lies in `cidr` and in none of `except`. IPv4 and IPv6 never mix; an IPv4-mapped IPv6 address or block
/// means the IPv4 one, as in Go's `net` package, which the API server and the CNIs use.
pub(super) fn in_block(cidr: &IpNet, except: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    net_contains(cidr, ip) && !except.iter().any(|e| net_contains(e, ip))
}

fn net_contains(net: &IpNet, ip: IpAddr) -> bool {
    match (net, ip) {
        (IpNet::V4(net), IpAddr::V4(ip)) => net.contains(&ip),
        (IpNet::V6(net), IpAddr::V6(ip)) => net.contains(&ip),
        (IpNet::V6(net), IpAddr::V4(ip)) => {
            net.prefix_len() >= 96 && net.addr().to_ipv4_mapped().is_some() && net.contains(&ip.to_ipv6_mapped())
        }
        (IpNet::V4(_), IpAddr::V6(_)) => false,
    }
}

/// Whether the destination is a service's address. Policy sees the backend, so such a connection can't be evaluated.
fn is_service_address(index: &Index, connection: &Connection<'_>) -> bool {
    let (PolicyIdentity::External, Some(ip)) = (&connection.destination.identity, connection.destination.ip) else {
        return false;
    };
    let (Transport::Named(protocol), Some(port)) = (connection.transport, connection.port) else { return false };
    index.service_at(ip, protocol, port).is_some()
}
