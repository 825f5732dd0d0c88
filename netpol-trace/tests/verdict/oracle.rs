//! The second evaluator: slow, written from the API's documentation sentence by sentence, and sharing nothing with the
//! first but the model's types: not even a selector's `matches`, an address range's `contains` or the index.
//!
//! It evaluates what the API defines: pods (without hostNetwork), nodes and external addresses; TCP, UDP and SCTP;
//! `ipBlock` compared with pod IPs as Kubernetes' own tests require.

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_trace::model::Str;
use netpol_trace::model::cluster::*;

/// A cluster as plain lists.
#[derive(Debug, Clone)]
pub struct World {
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    pub policies: Vec<Policy>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Party {
    /// By its place in [`World::pods`].
    Pod(usize),
    External(IpAddr),
    Node(String, IpAddr),
}

#[derive(Debug, Clone)]
pub struct Query {
    pub from: Party,
    pub to: Party,
    pub protocol: Protocol,
    pub port: u16,
}

/// "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source pod and
/// the ingress policy on the destination pod need to allow the connection."
pub fn allows(world: &World, query: &Query) -> bool {
    direction_allows(world, query, "egress") && direction_allows(world, query, "ingress")
}

pub fn direction_allows(world: &World, query: &Query, direction: &str) -> bool {
    let (subject, other) = match direction {
        "egress" => (&query.from, &query.to),
        _ => (&query.to, &query.from),
    };
    let Party::Pod(subject) = subject else { return true };
    let pod = &world.pods[*subject];
    // "A Pod cannot block access to itself."
    if *other == Party::Pod(*subject) {
        return true;
    }
    // "Traffic to and from the node where a Pod is running is always allowed."
    if let Party::Node(name, _) = other
        && pod.node.as_ref().is_some_and(|node| node.to_string() == *name)
    {
        return true;
    }
    let mut isolated = false;
    for policy in &world.policies {
        if policy.namespace != pod.namespace || !selects(&policy.subject, &pod.labels) {
            continue;
        }
        // "If no policyTypes are specified on a NetworkPolicy then by default Ingress will always be set and Egress will
        // be set if the NetworkPolicy has any egress rules."
        let applies = match &policy.declared_types {
            Some(types) => types.iter().any(|t| format!("{t:?}").to_lowercase() == direction),
            None => direction == "ingress" || policy.egress.iter().next().is_some(),
        };
        if !applies {
            continue;
        }
        isolated = true;
        let rules = if direction == "ingress" { &policy.ingress } else { &policy.egress };
        for rule in rules {
            if rule_allows(world, query, policy, rule, other) {
                return true;
            }
        }
    }
    // "By default, a pod is non-isolated; all connections are allowed."
    !isolated
}

/// "Each rule allows traffic which matches both the from and ports sections."
fn rule_allows(world: &World, query: &Query, policy: &Policy, rule: &Rule, other: &Party) -> bool {
    let mut peer_matches = true;
    // "If this field is empty or missing, this rule matches all sources."
    if let Some(peers) = &rule.peers
        && !peers.is_empty()
    {
        peer_matches = false;
        for peer in peers {
            peer_matches |= peer_allows(world, policy, peer, other);
        }
    }
    let mut port_matches = true;
    if let Some(ports) = &rule.ports
        && !ports.is_empty()
    {
        port_matches = false;
        for port in ports {
            port_matches |= port_allows(world, query, port);
        }
    }
    peer_matches && port_matches
}

fn peer_allows(world: &World, policy: &Policy, peer: &Peer, other: &Party) -> bool {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let Party::Pod(at) = other else { return false };
            let pod = &world.pods[*at];
            let namespace_fits = match namespaces {
                // "Otherwise it selects the pods matching podSelector in the policy's own namespace."
                None => pod.namespace == policy.namespace,
                Some(selector) => {
                    let namespace = world.namespaces.iter().find(|n| n.name == pod.namespace).unwrap();
                    selects(selector, &namespace.labels)
                }
            };
            let pod_fits = match pods {
                None => true,
                Some(selector) => selects(selector, &pod.labels),
            };
            namespace_fits && pod_fits
        }
        Peer::Block { cidr, except } => {
            let addresses: Vec<IpAddr> = match other {
                Party::Pod(at) => world.pods[*at].ips.to_vec(),
                Party::External(ip) | Party::Node(_, ip) => vec![*ip],
            };
            addresses.iter().any(|ip| inside(cidr, ip) && !except.iter().any(|e| inside(e, ip)))
        }
    }
}

/// "If port is not specified, this matches all port names and numbers."
fn port_allows(world: &World, query: &Query, want: &PortMatch) -> bool {
    if want.protocol != query.protocol {
        return false;
    }
    match &want.port {
        PortSpec::Any => true,
        PortSpec::Range(first, last) => query.port >= *first && query.port <= *last,
        PortSpec::Named(name) => {
            let Party::Pod(at) = query.to else { return false };
            let mut found = false;
            for port in &world.pods[at].ports {
                let same_name = port.name.as_ref().is_some_and(|n| n == name);
                found |= same_name && port.protocol == want.protocol && port.port == query.port;
            }
            found
        }
    }
}

/// "The result of matchLabels and matchExpressions are ANDed."
fn selects(selector: &Selector, labels: &Labels) -> bool {
    let mut all = true;
    for requirement in &selector.requirements {
        let mut value = None;
        for (key, v) in labels.iter() {
            if *key == requirement.key {
                value = Some(v.to_string());
            }
        }
        let among = |values: &[Str]| values.iter().any(|v| Some(v.to_string()) == value);
        all &= match &requirement.operator {
            Operator::In(values) => value.is_some() && among(values),
            // "NotIn and DoesNotExist also match objects without the key."
            Operator::NotIn(values) => value.is_none() || !among(values),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        };
    }
    all
}

/// Bit by bit: the first `prefix_len` bits are the same. IPv4 and IPv6 never mix.
fn inside(cidr: &IpNet, ip: &IpAddr) -> bool {
    let bits = |ip: &IpAddr| -> Vec<bool> {
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
    };
    let (net, ip) = (bits(&cidr.addr()), bits(ip));
    net.len() == ip.len() && net.iter().zip(&ip).take(cidr.prefix_len().into()).all(|(a, b)| a == b)
}
