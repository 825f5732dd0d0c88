//! Random clusters and queries, small enough that labels, ports and addresses often meet.

use std::net::IpAddr;

use netpol_trace::cluster::{Index, Object};
use netpol_trace::model::Str;
use netpol_trace::model::cluster::*;
use netpol_trace::policy::{Connection, PolicyEndpoint, PolicyIdentity, Transport};
use proptest::prelude::*;
use proptest::sample::select;

use crate::mk;
use crate::oracle::{Party, Query, World};

const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];
const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "web"];
const PORTS: [u16; 6] = [0, 53, 80, 81, 8080, 65535];
const ADDRESSES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.1.0.1",
    "192.168.0.1",
    "192.168.0.2",
    "8.8.8.8",
    "fd00::1",
    "fd00:1::1",
    "2001:db8::1",
];
const BLOCKS: [&str; 11] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.1/32",
    "10.0.0.7/30",
    "8.8.8.8/32",
    "::/0",
    "fd00::/8",
    "fd00::/32",
    "2001:db8::1/128",
];

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::vec((select(&KEYS[..]), select(&VALUES[..])), 0..4).prop_map(Labels::from_iter)
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let values =
        || proptest::collection::vec(select(&VALUES[..]).prop_map(Str::from), 1..3).prop_map(Vec::into_boxed_slice);
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    (select(vec!["app", "tier", "env", "kubernetes.io/metadata.name"]), operator)
        .prop_map(|(key, operator)| Requirement { key: key.into(), operator })
}

fn selector() -> impl Strategy<Value = Selector> {
    proptest::collection::vec(requirement(), 0..3).prop_map(|r| Selector { requirements: r.into() })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        (proptest::option::of(selector()), selector()).prop_map(|(n, p)| Peer::Pods { namespaces: n, pods: Some(p) }),
        selector().prop_map(|n| Peer::Pods { namespaces: Some(n), pods: None }),
        (select(&BLOCKS[..]), proptest::collection::vec(select(&BLOCKS[..]), 0..3)).prop_map(|(cidr, except)| {
            Peer::Block {
                cidr: cidr.parse().unwrap(),
                except: except.into_iter().map(|e| e.parse().unwrap()).collect(),
            }
        }),
    ]
}

fn port() -> impl Strategy<Value = PortMatch> {
    let spec = prop_oneof![
        1 => Just(PortSpec::Any),
        3 => (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| PortSpec::Range(a.min(b), a.max(b))),
        3 => select(&PORTS[..]).prop_map(|a| PortSpec::Range(a, a)),
        3 => select(&PORT_NAMES[..]).prop_map(|n| PortSpec::Named(n.into())),
    ];
    (protocol(), spec).prop_map(|(protocol, port)| PortMatch { protocol, protocol_defaulted: false, port })
}

fn rules() -> impl Strategy<Value = Box<[Rule]>> {
    let rule = (
        proptest::option::weighted(0.8, proptest::collection::vec(peer(), 0..3)),
        proptest::option::weighted(0.6, proptest::collection::vec(port(), 0..3)),
    )
        .prop_map(|(peers, ports)| Rule {
            peers: peers.map(Vec::into_boxed_slice),
            ports: ports.map(Vec::into_boxed_slice),
        });
    proptest::collection::vec(rule, 0..3).prop_map(Vec::into_boxed_slice)
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    use Direction::{Egress, Ingress};
    let types = select(vec![None, Some(vec![Ingress]), Some(vec![Egress]), Some(vec![Ingress, Egress])]);
    let policy = (select(&NAMESPACES[..]), selector(), types, rules(), rules());
    proptest::collection::vec(policy, 0..8).prop_map(|policies| {
        let number = |(i, (namespace, subject, types, ingress, egress))| {
            let made = mk::policy(&format!("{namespace}/p{i}"), "");
            let declared_types = Option::map(types, Vec::into_boxed_slice);
            Policy { subject, declared_types, ingress, egress, ..made }
        };
        policies.into_iter().enumerate().map(number).collect()
    })
}

fn pods() -> impl Strategy<Value = Vec<Pod>> {
    let container_port = (proptest::option::of(select(&PORT_NAMES[..])), select(&PORTS[..]), protocol());
    let ips = proptest::collection::vec(select(&ADDRESSES[..]), 0..3);
    let pod = (select(&NAMESPACES[..]), labels(), ips, proptest::collection::vec(container_port, 0..4), 1..3u8);
    proptest::collection::vec(pod, 1..7).prop_map(|pods| {
        let number = |(i, (namespace, labels, ips, ports, node)): (usize, (_, _, Vec<&str>, _, u8))| {
            let ports = Vec::into_iter(ports).map(|(name, port, protocol)| ContainerPort {
                name: Option::map(name, Str::from),
                port,
                protocol,
                sidecar: false,
            });
            let made = mk::pod(&format!("{namespace}/p{i}"), "", &ips.join(" "));
            Pod { labels, ports: ports.collect(), node: Some(format!("node{node}").into()), ..made }
        };
        pods.into_iter().enumerate().map(number).collect()
    })
}

pub fn world() -> impl Strategy<Value = World> {
    let namespaces = [labels(), labels(), labels()].prop_map(|of| {
        let named = |(name, labels): (&&str, Labels)| {
            let name_label = [(Str::from("kubernetes.io/metadata.name"), Str::from(*name))];
            let labels = labels.iter().map(|(k, v)| (k.clone(), v.clone())).chain(name_label).collect();
            Namespace { name: (*name).into(), labels }
        };
        NAMESPACES.iter().zip(of).map(named).collect()
    });
    (namespaces, pods(), policies()).prop_map(|(namespaces, pods, policies)| World { namespaces, pods, policies })
}

/// `of` pods: most ends are pods.
pub fn query(of: usize) -> impl Strategy<Value = Query> {
    let address = || select(&ADDRESSES[..]).prop_map(|a| a.parse::<IpAddr>().unwrap());
    let party = || {
        prop_oneof![
            8 => (0..of).prop_map(Party::Pod),
            2 => address().prop_map(Party::External),
            1 => (1..3u8, address()).prop_map(|(n, ip)| Party::Node(format!("node{n}"), ip)),
        ]
    };
    (party(), party(), protocol(), select(&PORTS[..])).prop_map(|(from, to, protocol, port)| Query {
        from,
        to,
        protocol,
        port,
    })
}

/// A cluster and queries about it.
pub fn questions(many: usize) -> impl Strategy<Value = (World, Vec<Query>)> {
    world().prop_flat_map(move |world| {
        let queries = proptest::collection::vec(query(world.pods.len()), many);
        (Just(world), queries)
    })
}

impl World {
    pub fn index(&self) -> Index {
        let namespaces = self.namespaces.iter().cloned().map(Object::Namespace);
        let pods = self.pods.iter().cloned().map(Object::Pod);
        let policies = self.policies.iter().cloned().map(Object::Policy);
        Index::from_objects(namespaces.chain(pods).chain(policies))
    }

    fn end<'a>(&self, index: &'a Index, party: &'a Party) -> PolicyEndpoint<'a> {
        match party {
            Party::Pod(at) => PolicyEndpoint::pod(index.pod(&self.pods[*at].namespace, &self.pods[*at].name).unwrap()),
            Party::External(ip) => PolicyEndpoint::external(*ip),
            Party::Node(name, ip) => PolicyEndpoint { ip: Some(*ip), identity: PolicyIdentity::Node(name) },
        }
    }

    pub fn connection<'a>(&self, index: &'a Index, query: &'a Query) -> Connection<'a> {
        Connection {
            source: self.end(index, &query.from),
            destination: self.end(index, &query.to),
            transport: Transport::Named(query.protocol),
            port: Some(query.port),
            at: None,
        }
    }
}
