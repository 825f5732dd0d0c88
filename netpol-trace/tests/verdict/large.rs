//! A cluster of a given size: per namespace 20 pods in five apps and 10 policies (a default deny, DNS for all, and policies
//! between the apps); and connections that are mostly allowed.

use std::net::{IpAddr, Ipv4Addr};

use netpol_trace::cluster::{Index, Object};
use netpol_trace::model::cluster::*;
use netpol_trace::policy::{Connection, PolicyEndpoint, Transport};

use crate::mk;

pub const PODS_A_NAMESPACE: usize = 20;
const APPS: [&str; 5] = ["frontend", "api", "worker", "db", "cache"];

pub fn pod_key(number: usize) -> (String, String) {
    (format!("team-{}", number / PODS_A_NAMESPACE), format!("pod-{number}"))
}

pub fn pod(number: usize) -> Pod {
    let (namespace, name) = pod_key(number);
    let app = APPS[number % APPS.len()];
    let labels = format!(
        "app={app},app.kubernetes.io/instance={namespace},pod-template-hash=5c9f4d7b{},tier=t{}",
        number % 16,
        number % 3
    );
    let ports = ["http=8080/TCP", "metrics=9090/TCP"].map(mk::container_port).into();
    let ip = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()));
    let node = Some(format!("node-{}", number % 100).into());
    Pod { ips: [ip].into(), ports, node, ..mk::pod(&format!("{namespace}/{name}"), &labels, "") }
}

pub fn policies(namespace: &str) -> Vec<Policy> {
    let key = |name: &str| format!("{namespace}/{name}");
    let both = Some([Direction::Ingress, Direction::Egress].into());
    let from_app = |app: &str, port| mk::rule([mk::pods(&format!("app={app}"))], [port]);
    let dns =
        mk::rule([mk::pods_in("kubernetes.io/metadata.name=kube-system", "k8s-app=kube-dns")], ["53/UDP", "53/TCP"]);
    let outside = mk::rule([mk::block("0.0.0.0/0 except 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16")], ["443/TCP"]);
    vec![
        Policy { declared_types: both.clone(), ..mk::policy(&key("default-deny"), "") },
        mk::egress(&key("allow-dns"), "", [dns]),
        mk::egress(&key("allow-outside"), "tier in (t0,t1)", [outside]),
        mk::egress(&key("within"), "", [mk::any_port([mk::pods("app")])]),
        mk::ingress(&key("frontend"), "app=frontend", [mk::rule([mk::namespaces("team-group=shared")], ["http/TCP"])]),
        mk::ingress(&key("api"), "app=api", [from_app("frontend", "8080/TCP"), from_app("worker", "8080/TCP")]),
        mk::ingress(&key("worker"), "app=worker", [from_app("api", "http/TCP")]),
        mk::ingress(&key("db"), "app=db", [from_app("api", "5432/TCP"), from_app("worker", "5432/TCP")]),
        mk::ingress(
            &key("cache"),
            "app in (cache,memory)",
            [from_app("api", "6379/TCP"), from_app("worker", "6379/TCP")],
        ),
        mk::ingress(&key("metrics"), "", [mk::rule([mk::pods_in("team-group=shared", "app=api")], ["metrics/TCP"])]),
    ]
}

pub fn namespace(number: usize) -> Object {
    let group = if number.is_multiple_of(10) { "shared" } else { "product" };
    mk::namespace(&format!("team-{number}"), &format!("team-group={group}"))
}

pub fn objects(pods: usize) -> Vec<Object> {
    let namespaces = pods.div_ceil(PODS_A_NAMESPACE);
    let mut objects: Vec<_> = (0..namespaces).map(namespace).collect();
    objects.extend((0..namespaces).flat_map(|n| policies(&format!("team-{n}"))).map(Object::Policy));
    objects.extend((0..pods).map(pod).map(Object::Pod));
    objects
}

/// Pseudo-random and the same in every run (xorshift).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// Half within a namespace, half across.
pub fn connections(index: &Index, pods: usize, many: usize) -> Vec<Connection<'_>> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let view = |number| {
        let (namespace, name) = pod_key(number);
        let view = index.pod(&namespace, &name).unwrap();
        PolicyEndpoint { ip: view.pod.ips.first().copied(), ..PolicyEndpoint::pod(view) }
    };
    let one = |_| {
        let from = numbers.below(pods);
        let near = from / PODS_A_NAMESPACE * PODS_A_NAMESPACE + numbers.below(PODS_A_NAMESPACE);
        let to = if numbers.below(2) == 0 { near.min(pods - 1) } else { numbers.below(pods) };
        let port = [8080, 5432, 6379, 9090, 443][numbers.below(5)];
        let transport = Transport::Named(Protocol::Tcp);
        Connection { source: view(from), destination: view(to), transport, port: Some(port), at: None }
    };
    (0..many).map(one).collect()
}
