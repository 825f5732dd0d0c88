//! Hints for one service or protocol: DNS, the API server, a service's address, data connections.

use ipnet::IpNet;

use crate::model::Hint;
use crate::model::cluster::{Direction, Peer, PortSpec, Protocol};
use crate::policy::PolicyIdentity;
use crate::policy::hint::{DeniedSide, NODE_LOCAL_DNS, message, with_code};
use crate::policy::matching::{Assumptions, Match, covers, in_block};
use crate::policy::nearest::as_pod;

impl<'a> DeniedSide<'_, 'a> {
    pub(super) fn dns(&self) -> Option<Hint> {
        let (Direction::Egress, Some(port)) = (self.direction(), self.matcher.connection.port) else { return None };
        let requested_dns = self.request.service.is_some_and(|s| s.port == Some(53))
            || self.request.original.is_some_and(|o| o.port == Some(53));
        if !matches!(self.protocol(), Some(Protocol::Tcp | Protocol::Udp)) || (port != 53 && !requested_dns) {
            return None;
        }
        let destination = self.matcher.connection.destination.ip;
        if destination == Some(NODE_LOCAL_DNS.into()) {
            let message = "NodeLocal DNSCache answers on the node, not in a DNS pod, so no selector matches it: add to \
                           the DNS rule `to: [{ipBlock: {cidr: 169.254.20.10/32}}]`, ports 53/UDP and 53/TCP.";
            return Some(with_code("dns-nodelocal", message.to_owned()));
        }
        // A rule allows DNS to this peer, by the wrong port or protocol.
        if let (Some(want), None) = (self.missed_port(), self.nearest.peer) {
            let place = format!("{} egress[{}]", self.policy(), self.nearest.rule?);
            if port != 53 && covers(want, 53) {
                let message = message!(
                    "{place} allows port 53, the DNS service's; its pods listen on {port}, and that is what policy \
                     sees: add {port}/UDP and {port}/TCP to its ports."
                );
                return Some(with_code("dns-pod-port", message));
            }
            if covers(want, port) {
                let protocol = self.protocol()?;
                let message = message!(
                    "{place} allows {want} only, and the packet is {port}/{protocol}: add {{port: {port}, protocol: {protocol}}} to its ports, because DNS needs both UDP and TCP."
                );
                return Some(with_code("dns-egress", message));
            }
        }
        // A rule for DNS selects another peer: the miss is the better hint.
        if self.missed_peer().is_some() && self.nearest.port.is_none() && self.names_ports() {
            return None;
        }
        let message = message!(
            "Egress of {} is isolated and no rule allows DNS. Add an egress rule: to: [{}], ports: [{{port: {port}, \
             protocol: UDP}}, {{port: {port}, protocol: TCP}}]",
            self.text.subject(),
            self.text.peer_item(self.nearest.policy)?,
        );
        Some(with_code("dns-egress", message))
    }

    fn names_ports(&self) -> bool {
        self.nearest_rule().is_some_and(|rule| rule.ports.as_ref().is_some_and(|ports| !ports.is_empty()))
    }

    /// The API server's endpoints are nodes or addresses outside, never pods that a selector selects.
    pub(super) fn api_server(&self) -> Option<Hint> {
        let service = self.request.service.filter(|s| &*s.namespace == "default" && &*s.name == "kubernetes")?;
        let (Direction::Egress, PolicyIdentity::Node(_) | PolicyIdentity::External) =
            (self.direction(), &self.matcher.peer().identity)
        else {
            return None;
        };
        let message = message!(
            "The API server ({}/{}) is not a pod, so no selector selects it. Add an egress rule: to: [{}], ports: [{}]",
            service.namespace,
            service.name,
            self.text.peer_item(self.nearest.policy)?,
            self.text.port_item()?,
        );
        Some(with_code("apiserver", message))
    }

    /// An `ipBlock` that holds the service's address: policy sees the backend's.
    pub(super) fn service_address_in_block(&self) -> Option<Hint> {
        let original = self.request.original?.ip;
        let backend = self.matcher.connection.destination.ip?;
        if self.direction() != Direction::Egress || original == backend {
            return None;
        }
        let (place, cidr) = self
            .blocks()
            .find(|(_, cidr, except)| in_block(cidr, except, original) && !in_block(cidr, except, backend))
            .map(|(place, cidr, _)| (place, cidr))?;
        let message = message!(
            "{place} allows {cidr}, which holds the service's address {original}; policy sees the backend, {backend}: \
             allow that instead, to: [{}], ports: [{}]",
            self.text.peer_item(self.nearest.policy)?,
            self.text.port_item()?,
        );
        Some(with_code("clusterip-ipblock", message))
    }

    /// Every `ipBlock` of the isolating policies in this direction, with its path.
    fn blocks(&self) -> impl Iterator<Item = (String, &'a IpNet, &'a [IpNet])> {
        let direction = self.direction();
        let rules =
            self.side.isolated_by.iter().flat_map(move |policy| {
                policy.rules(direction).iter().enumerate().map(move |(i, rule)| (policy, i, rule))
            });
        rules.flat_map(move |(policy, i, rule)| {
            rule.peers.iter().flatten().enumerate().filter_map(move |(j, peer)| match peer {
                Peer::Block { cidr, except } => {
                    let field = direction.peers_field();
                    let place = format!("{}/{} {direction}[{i}].{field}[{j}].ipBlock", policy.namespace, policy.name);
                    Some((place, cidr, &**except))
                }
                Peer::Pods { .. } => None,
            })
        })
    }

    /// An `ipBlock` around the pod network, on a CNI that compares blocks with outside addresses only.
    pub(super) fn pod_in_block(&self) -> Option<Hint> {
        let view = as_pod(&self.matcher.peer().identity)?;
        let Some(Peer::Block { cidr, except }) = self.missed_peer() else { return None };
        let held = self.matcher.peer_addresses().iter().any(|ip| in_block(cidr, except, *ip));
        if !held || !self.side.assumed.contains(Assumptions::IPBLOCK) || self.nearest.port.is_some() {
            return None;
        }
        let message = message!(
            "{} allows {cidr}, but this CNI does not match pods by ipBlock, and {}/{} is a pod: select it, {}: [{}]",
            self.place(),
            view.pod.namespace,
            view.pod.name,
            self.direction().peers_field(),
            self.text.peer_item(self.nearest.policy)?,
        );
        Some(with_code("pod-cidr-ipblock", message))
    }

    /// Protocols that agree on a second port: FTP's data connection, NFSv3's helpers.
    pub(super) fn dynamic_ports(&self) -> Option<Hint> {
        let port = self.matcher.connection.port?;
        if port < 1024 {
            return None;
        }
        if self.direction() == Direction::Ingress
            && self.request.source_port == Some(crate::policy::hint::FTP_DATA)
            && self.protocol()? == Protocol::Tcp
        {
            let message = message!(
                "The source port is 20: this looks like the data connection of active FTP, which the server opens to its client \
                 on a port chosen anew each time (here {port}). Use passive mode, or allow ports 1024-65535/TCP from {} \
                 only.",
                self.text.peer(),
            );
            return Some(with_code("dynamic-ports", message));
        }
        let control = self.control_port()?;
        let (what, remedy) = match control {
            21 => ("FTP", "allow the server's passive port range with endPort"),
            _ => (
                "NFS or another RPC service",
                "fix the ports of its helpers and allow them, or allow a range with endPort",
            ),
        };
        let message = message!(
            "A rule allows port {control} to the same peer, and {port} looks like one that {what} agrees on during the \
             connection: {remedy}.",
        );
        Some(with_code("dynamic-ports", message))
    }

    /// 21 (FTP) or 111 (portmapper), where a rule allows exactly that to this peer.
    fn control_port(&self) -> Option<u16> {
        let rules = self
            .side
            .isolated_by
            .iter()
            .flat_map(|policy| policy.rules(self.direction()).iter().map(move |rule| (policy, rule)));
        rules.filter(|(policy, rule)| matches!(self.matcher.peers(policy, rule), Match::Yes(_))).find_map(
            |(_, rule)| {
                rule.ports.iter().flatten().find_map(|want| match (&want.port, want.protocol) {
                    (PortSpec::Range(21, 21), Protocol::Tcp) if self.protocol() == Some(Protocol::Tcp) => Some(21),
                    (PortSpec::Range(111, 111), _) => Some(111),
                    _ => None,
                })
            },
        )
    }
}
