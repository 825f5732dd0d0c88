//! Builds model objects from short texts, so that a test reads like YAML.
#![allow(dead_code, reason = "each test and bench uses its own part")]

use std::net::IpAddr;

use netpol_trace::cluster::{Index, Object};
use netpol_trace::model::Str;
use netpol_trace::model::cluster::*;
use netpol_trace::policy;
use netpol_trace::policy::{CniOptions, Connection, PolicyEndpoint, PolicyIdentity, Transport};

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `app=api,env=qa`
pub fn labels(text: &str) -> Labels {
    text.split(',').filter(|p| !p.is_empty()).map(|pair| pair.split_once('=').unwrap()).collect()
}

/// The notation of `kubectl get -l`, with requirements separated by `;`: `app=api; tier in (a,b); x notin (y); !z; k`.
pub fn selector(text: &str) -> Selector {
    let values = |list: &str| list.trim_matches(['(', ')']).split(',').map(Str::from).collect();
    let requirement = |text: &str| {
        let (key, operator) = if let Some((key, list)) = text.split_once(" in ") {
            (key, Operator::In(values(list)))
        } else if let Some((key, list)) = text.split_once(" notin ") {
            (key, Operator::NotIn(values(list)))
        } else if let Some((key, value)) = text.split_once('=') {
            (key, Operator::In([Str::from(value)].into()))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (text, Operator::Exists)
        };
        Requirement { key: key.into(), operator }
    };
    Selector { requirements: text.split(';').map(str::trim).filter(|t| !t.is_empty()).map(requirement).collect() }
}

pub fn namespace(name: &str, more: &str) -> Object {
    let with_name = format!("kubernetes.io/metadata.name={name},{more}");
    Object::Namespace(Namespace { name: name.into(), labels: labels(&with_name) })
}

/// `pod("x/a", "app=a", "10.0.0.1 fd00::1")`
pub fn pod(key: &str, with: &str, ips: &str) -> Pod {
    let (namespace, name) = key.split_once('/').unwrap();
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        uid: None,
        labels: labels(with),
        ips: ips.split_whitespace().map(ip).collect(),
        node: None,
        host_network: false,
        phase: PodPhase::Running,
        terminating: false,
        ports: [].into(),
        owner: None,
        created: None,
        template: false,
    }
}

/// `http=80/TCP`
pub fn container_port(text: &str) -> ContainerPort {
    let (name, spec) = text.split_once('=').unwrap();
    let (port, proto) = spec.split_once('/').unwrap();
    ContainerPort {
        name: (!name.is_empty()).then(|| name.into()),
        port: port.parse().unwrap(),
        protocol: protocol(proto),
        sidecar: false,
    }
}

pub fn protocol(text: &str) -> Protocol {
    match text {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => panic!("no such protocol: {text}"),
    }
}

/// Isolates ingress only, as a policy without `policyTypes`, `ingress` and `egress` does.
pub fn policy(key: &str, subject: &str) -> Policy {
    let (namespace, name) = key.split_once('/').unwrap();
    Policy {
        namespace: namespace.into(),
        name: name.into(),
        uid: None,
        labels: Default::default(),
        annotations: Default::default(),
        generation: None,
        changed: None,
        subject: selector(subject),
        declared_types: None,
        ingress: [].into(),
        egress: [].into(),
    }
}

pub fn ingress(key: &str, subject: &str, rules: impl IntoIterator<Item = Rule>) -> Policy {
    let ingress = rules.into_iter().collect();
    Policy { declared_types: Some([Direction::Ingress].into()), ingress, ..policy(key, subject) }
}

pub fn egress(key: &str, subject: &str, rules: impl IntoIterator<Item = Rule>) -> Policy {
    let egress = rules.into_iter().collect();
    Policy { declared_types: Some([Direction::Egress].into()), egress, ..policy(key, subject) }
}

/// `rule([pods("app=a")], ["80/TCP"])`; empty lists are present and empty.
pub fn rule<'a>(peers: impl IntoIterator<Item = Peer>, ports: impl IntoIterator<Item = &'a str>) -> Rule {
    Rule { peers: Some(peers.into_iter().collect()), ports: Some(ports.into_iter().map(port).collect()) }
}

pub fn any_peer<'a>(ports: impl IntoIterator<Item = &'a str>) -> Rule {
    Rule { peers: None, ports: Some(ports.into_iter().map(port).collect()) }
}

pub fn any_port(peers: impl IntoIterator<Item = Peer>) -> Rule {
    Rule { peers: Some(peers.into_iter().collect()), ports: None }
}

pub fn anything() -> Rule {
    Rule { peers: None, ports: None }
}

pub fn pods(with: &str) -> Peer {
    Peer::Pods { namespaces: None, pods: Some(selector(with)) }
}

pub fn namespaces(with: &str) -> Peer {
    Peer::Pods { namespaces: Some(selector(with)), pods: None }
}

pub fn pods_in(namespaces: &str, with: &str) -> Peer {
    Peer::Pods { namespaces: Some(selector(namespaces)), pods: Some(selector(with)) }
}

/// `block("10.0.0.0/8 except 10.2.0.0/16,10.3.0.0/16")`
pub fn block(text: &str) -> Peer {
    let (cidr, except) = text.split_once(" except ").unwrap_or((text, ""));
    Peer::Block {
        cidr: cidr.parse().unwrap(),
        except: except.split(',').filter(|e| !e.is_empty()).map(|e| e.parse().unwrap()).collect(),
    }
}

/// `80`, `80/UDP`, `80-90/TCP`, `http/TCP`, `any/SCTP`
pub fn port(text: &str) -> PortMatch {
    let (spec, proto) = text.split_once('/').unwrap_or((text, "TCP"));
    let port = match (spec, spec.split_once('-')) {
        ("any", _) => PortSpec::Any,
        (_, Some((a, b))) if a.parse::<u16>().is_ok() => PortSpec::Range(a.parse().unwrap(), b.parse().unwrap()),
        _ => match spec.parse() {
            Ok(number) => PortSpec::Range(number, number),
            Err(_) => PortSpec::Named(spec.into()),
        },
    };
    PortMatch { protocol: protocol(proto), protocol_defaulted: !text.contains('/'), port }
}

/// `x/a` is a pod by name, `10.0.0.1` an address, `node:n1` a node, `unknown` and `unknown:10.0.0.1` endpoints without a known owner.
pub fn end<'a>(index: &'a Index, text: &'a str) -> PolicyEndpoint<'a> {
    if let Some((namespace, name)) = text.split_once('/') {
        return PolicyEndpoint::pod(index.pod(namespace, name).unwrap_or_else(|| panic!("no pod {text}")));
    }
    match text.split_once(':').filter(|_| !text.contains("::")) {
        Some(("node", name)) => {
            PolicyEndpoint { ip: index.node(name).map(|n| n.ips[0]), identity: PolicyIdentity::Node(name) }
        }
        Some(("unknown", addr)) => PolicyEndpoint { ip: Some(ip(addr)), identity: PolicyIdentity::Unknown },
        _ if text == "unknown" => PolicyEndpoint { ip: None, identity: PolicyIdentity::Unknown },
        _ => PolicyEndpoint::external(ip(text)),
    }
}

/// `80/TCP`, or a transport without ports: `icmp`, `gre`.
pub fn connection<'a>(index: &'a Index, from: &'a str, to: &'a str, port: &str) -> Connection<'a> {
    let (transport, port) = match port.split_once('/') {
        Some((number, proto)) => (Transport::Named(protocol(proto)), number.parse().ok()),
        None => (Transport::from_number(if port == "icmp" { 1 } else { 47 }), None),
    };
    Connection { source: end(index, from), destination: end(index, to), transport, port, at: None }
}

/// A cluster under test.
pub struct Cluster {
    pub index: Index,
    pub options: CniOptions,
}

pub fn cluster(pods: impl IntoIterator<Item = Pod>, policies: impl IntoIterator<Item = Policy>) -> Cluster {
    let objects = pods.into_iter().map(Object::Pod).chain(policies.into_iter().map(Object::Policy));
    Cluster { index: Index::from_objects(objects), options: CniOptions::default() }
}

impl Cluster {
    pub fn with(mut self, objects: impl IntoIterator<Item = Object>) -> Cluster {
        objects.into_iter().for_each(|object| self.index.upsert(object));
        self
    }

    pub fn verdict_of(&self, from: &str, to: &str, port: &str) -> netpol_trace::model::Verdict {
        policy::verdict_of(&self.index, &connection(&self.index, from, to, port), &self.options)
    }

    /// `allowed`, `denied egress`, `denied ingress`, `denied both`, or `undetermined BASIS`.
    pub fn says(&self, from: &str, to: &str, port: &str) -> String {
        use netpol_trace::model::VerdictResult::{Allowed, Denied, Undetermined};
        let verdict = self.verdict_of(from, to, port);
        let sides = [&verdict.egress, &verdict.ingress].map(|side| side.result == Denied);
        match (verdict.result, sides) {
            (Allowed, [false, false]) => "allowed".to_owned(),
            (Undetermined, [false, false]) => format!("undetermined {}", verdict.basis),
            (Denied, [true, true]) => "denied both".to_owned(),
            (Denied, [true, false]) => "denied egress".to_owned(),
            (Denied, [false, true]) => "denied ingress".to_owned(),
            contradiction => panic!("a verdict that contradicts itself: {contradiction:?}"),
        }
    }
}
