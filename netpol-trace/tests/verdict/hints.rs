//! The hint that fits, and none where none does.

use expect_test::{Expect, expect};
use netpol_trace::cluster::manifests;
use netpol_trace::cluster::model::*;
use netpol_trace::record::{self, Address, ServiceRef};
use netpol_trace::verdict::{self, Asked, Options};
use proptest::prelude::*;

use crate::mk::*;
use crate::nearest::two_environments;
use crate::oracle::World;
use crate::random;

#[derive(Default)]
struct Known {
    service: Option<ServiceRef>,
    original: Option<Address>,
    source_port: Option<u16>,
}

fn through(namespace: &str, name: &str, port: u16, address: &str) -> Known {
    Known {
        service: Some(ServiceRef { namespace: namespace.to_owned(), name: name.to_owned(), port: Some(port) }),
        original: Some(Address { ip: ip(address), port: Some(port) }),
        source_port: None,
    }
}

fn hint(cluster: &Cluster, query: [&str; 3], known: &Known) -> Option<record::Hint> {
    let connection = connection(&cluster.index, query[0], query[1], query[2]);
    let asked =
        Asked { service: known.service.as_ref(), original: known.original.as_ref(), source_port: known.source_port };
    verdict::hint(&cluster.index, &connection, &cluster.options, asked)
}

fn check_known(cluster: &Cluster, query: [&str; 3], known: &Known, expected: Expect) {
    let text = hint(cluster, query, known).map_or("none\n".to_owned(), |h| format!("{}\n{}\n", h.code, h.message));
    expected.assert_eq(&text);
}

fn check(policies: impl IntoIterator<Item = Policy>, query: [&str; 3], expected: Expect) {
    check_known(&two_environments(policies), query, &Known::default(), expected);
}

fn both(key: &str) -> Policy {
    Policy { declared_types: Some([Direction::Ingress, Direction::Egress].into()), ..policy(key, "") }
}

#[test]
fn none_for_what_is_allowed() {
    check(
        [],
        ["staging/api", "staging/db", "3306/TCP"],
        expect![[r#"
        none
    "#]],
    );
}

#[test]
fn dns_egress() {
    check(
        [both("staging/test-np")],
        ["staging/api", "kube-system/dns", "53/UDP"],
        expect![[r#"
        dns-egress
        Egress of staging/api is isolated and no rule allows DNS. Add an egress rule: to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    "#]],
    );
    let udp_only = egress("staging/dns", "", [any_peer(["53/UDP"])]);
    check(
        [udp_only],
        ["staging/api", "kube-system/dns", "53/TCP"],
        expect![[r#"
        dns-egress
        staging/dns egress[0] allows 53/UDP only, and this is 53/TCP: DNS needs both UDP and TCP.
    "#]],
    );
    check(
        [both("staging/test-np")],
        ["staging/api", "8.8.8.8", "53/UDP"],
        expect![[r#"
        dns-egress
        Egress of staging/api is isolated and no rule allows DNS. Add an egress rule: to: [{ipBlock: {cidr: 8.8.8.8/32}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    "#]],
    );
}

#[test]
fn a_dns_rule_with_a_mistake_of_its_own() {
    let np = egress("staging/dns", "", [rule([pods_in("name=kube-system", "k8s-app=kube-dns")], ["53/UDP"])]);
    check(
        [np],
        ["staging/api", "kube-system/dns", "53/UDP"],
        expect![[r#"
        ns-label
        staging/dns egress[0].to[0] wants name=kube-system, but namespace kube-system has no label name: write kubernetes.io/metadata.name: kube-system, which every namespace has.
    "#]],
    );
}

#[test]
fn dns_nodelocal() {
    let np = egress("staging/dns", "", [rule([pods_in("", "k8s-app=kube-dns")], ["53/UDP"])]);
    let mut cluster = two_environments([np]);
    cluster.options.own_node_allowed = Some(false);
    let connection = verdict::Connection {
        destination: verdict::End::external(ip("169.254.20.10")),
        ..connection(&cluster.index, "staging/api", "169.254.20.10", "53/UDP")
    };
    let said = verdict::hint(&cluster.index, &connection, &cluster.options, Asked::default()).unwrap();
    assert_eq!(said.code, "dns-nodelocal");
}

#[test]
fn dns_pod_port() {
    let np = egress("staging/dns", "", [rule([namespaces("")], ["53/UDP", "53/TCP"])]);
    let known = through("kube-system", "dns", 53, "10.96.0.10");
    check_known(
        &two_environments([np]),
        ["staging/api", "kube-system/dns", "5353/UDP"],
        &known,
        expect![[r#"
        dns-pod-port
        staging/dns egress[0] allows port 53, the DNS service's; its pods listen on 5353, and that is what policy sees: add 5353/UDP and 5353/TCP to its ports.
    "#]],
    );
}

#[test]
fn service_port() {
    let np = || ingress("staging/api-np", "app=api", [rule([pods("app=frontend")], ["80/TCP"])]);
    let known = through("staging", "api-svc", 80, "10.96.0.80");
    let query = ["staging/frontend", "staging/api", "8080/TCP"];
    check_known(
        &two_environments([np()]),
        query,
        &known,
        expect![[r#"
        svc-port
        staging/api-np ingress[0].ports[0] holds 80, the port of service staging/api-svc; policy sees the pod's own port: write 8080.
    "#]],
    );
    // Not known from the packet, but the only service that could have been meant.
    let service = Object::Service(Service {
        namespace: "staging".into(),
        name: "api-svc".into(),
        uid: None,
        ips: [ip("10.96.0.80")].into(),
        ports: [ServicePort {
            name: None,
            protocol: Protocol::Tcp,
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
        }]
        .into(),
        selector: Some(labels("app=api")),
    });
    check_known(
        &two_environments([np()]).with([service]),
        query,
        &Known::default(),
        expect![[r#"
        svc-port
        staging/api-np ingress[0].ports[0] holds 80, the port of service staging/api-svc; policy sees the pod's own port: write 8080.
    "#]],
    );
    // Asked for directly, the port is just another one.
    check(
        [np()],
        query,
        expect![[r#"
        port
        staging/api-np ingress[0].ports[0] allows 80/TCP; this is 8080/TCP: add {port: 8080, protocol: TCP} to its ports.
    "#]],
    );
}

#[test]
fn named_port() {
    let np = || egress("staging/p", "", [any_peer(["http/TCP"])]);
    check(
        [np()],
        ["staging/api", "kube-system/dns", "9153/TCP"],
        expect![[r#"
        named-port
        staging/p egress[0].ports[0] wants http/TCP, and the destination is 9153/TCP (pod has dns=53/UDP,dns-tcp=53/TCP,metrics=9153/TCP): write port: metrics, or port: 9153, protocol: TCP.
    "#]],
    );
    check(
        [np()],
        ["staging/api", "8.8.8.8", "80/TCP"],
        expect![[r#"
        named-port
        staging/p egress[0].ports[0] names its port http; names mean something on pods only: write port: 80, protocol: TCP.
    "#]],
    );
}

#[test]
fn protocol_default() {
    let np = ingress("staging/p", "app=db", [any_peer(["3306"])]);
    check(
        [np],
        ["staging/api", "staging/db", "3306/UDP"],
        expect![[r#"
        proto-default
        staging/p ingress[0].ports[0] leaves protocol out, which means TCP; this is 3306/UDP: add UDP.
    "#]],
    );
    let explicit = ingress("staging/p", "app=db", [any_peer(["3306/TCP"])]);
    check(
        [explicit],
        ["staging/api", "staging/db", "3306/UDP"],
        expect![[r#"
        port
        staging/p ingress[0].ports[0] allows 3306/TCP; this is 3306/UDP: add {port: 3306, protocol: UDP} to its ports.
    "#]],
    );
}

#[test]
fn namespace_label() {
    let np = |peer| ingress("staging/p", "app=db", [any_port([peer])]);
    let query = ["qa-test/api", "staging/db", "3306/TCP"];
    check(
        [np(namespaces("name=qa-test"))],
        query,
        expect![[r#"
        ns-label
        staging/p ingress[0].from[0] wants name=qa-test, but namespace qa-test has no label name: write kubernetes.io/metadata.name: qa-test, which every namespace has.
    "#]],
    );
    check(
        [np(pods_in("name=qa-test", "app=api"))],
        query,
        expect![[r#"
        ns-label
        staging/p ingress[0].from[0] wants name=qa-test, but namespace qa-test has no label name: write kubernetes.io/metadata.name: qa-test, which every namespace has.
    "#]],
    );
    check(
        [np(namespaces("env=dev"))],
        query,
        expect![[r#"
        peer-namespace
        Nearest is staging/p: ingress[0].from[0].namespaceSelector env=dev | namespace has env=qa. To allow it, add to ingress[0].from the item {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}, podSelector: {matchLabels: {app: api}}}
    "#]],
    );
    check(
        [np(pods("app=api"))],
        query,
        expect![[r#"
        peer-namespace
        staging/p ingress[0].from[0] has a podSelector only, and that means namespace staging; this is qa-test/api, of another namespace: add to the same item namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}
    "#]],
    );
}

#[test]
fn peer_label() {
    let np = ingress("staging/db-np", "app=db", [rule([pods_in("", "app=api")], ["3306/TCP"])]);
    check(
        [np],
        ["qa-test/frontend", "staging/db", "3306/TCP"],
        expect![[r#"
        peer-label
        Nearest is staging/db-np: ingress[0].from[0].podSelector app=api | pod has app=frontend. To allow it, add to ingress[0].from the item {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}, podSelector: {matchLabels: {app: frontend}}}
    "#]],
    );
}

#[test]
fn peer_without_a_label() {
    let bare = Object::Pod(Pod { labels: labels("pod-template-hash=abc"), ..pod("staging/bare", "", "10.7.5.5") });
    let np = ingress("staging/db-np", "app=db", [any_port([pods("app=api")])]);
    check_known(
        &two_environments([np]).with([bare]),
        ["staging/bare", "staging/db", "3306/TCP"],
        &Known::default(),
        expect![[r#"
            peer-label
            No rule allows staging/bare, and it has no label to select it by: give its workload one (such as app: bare), and allow that.
        "#]],
    );
}

#[test]
fn outside_addresses() {
    let query = ["staging/api", "93.184.216.34", "443/TCP"];
    check(
        [egress("staging/p", "", [any_port([namespaces("")])])],
        query,
        expect![[r#"
        ip-block
        staging/p egress[0].to[0] selects pods, and 93.184.216.34 is none: add to egress[0].to the item {ipBlock: {cidr: 93.184.216.34/32}}
    "#]],
    );
    check(
        [egress("staging/p", "", [any_port([block("0.0.0.0/0 except 93.0.0.0/8")])])],
        query,
        expect![[r#"
        ip-block
        staging/p egress[0].to[0] allows 0.0.0.0/0 except 93.0.0.0/8, and 93.184.216.34 lies in that exception: add a rule or item for {ipBlock: {cidr: 93.184.216.34/32}}
    "#]],
    );
    check(
        [egress("staging/p", "", [any_port([block("8.8.8.8/32")])])],
        query,
        expect![[r#"
        ip-block
        Nearest is staging/p: egress[0].to[0].ipBlock 8.8.8.8/32 | 93.184.216.34. To allow it, add to egress[0].to the item {ipBlock: {cidr: 93.184.216.34/32}}
    "#]],
    );
}

#[test]
fn family() {
    let np = egress("staging/p", "", [any_port([block("0.0.0.0/0")])]);
    check(
        [np],
        ["staging/api", "2001:db8::1", "443/TCP"],
        expect![[r#"
        family
        staging/p egress[0].to[0] allows 0.0.0.0/0, which is IPv4 only, and this is 2001:db8::1: add ::/0.
    "#]],
    );
}

#[test]
fn clusterip_in_a_block() {
    let np = egress("staging/p", "", [rule([block("10.96.0.0/12")], ["3306/TCP"])]);
    let known = through("staging", "db-svc", 3306, "10.99.57.125");
    let cluster = two_environments([np]);
    let mut connection = connection(&cluster.index, "staging/api", "staging/db", "3306/TCP");
    connection.destination.ip = Some(ip("10.7.1.2"));
    let asked = Asked { service: known.service.as_ref(), original: known.original.as_ref(), source_port: None };
    let said = verdict::hint(&cluster.index, &connection, &cluster.options, asked).unwrap();
    expect![[r#"
        clusterip-ipblock
        staging/p egress[0].to[0].ipBlock allows 10.96.0.0/12, which holds the service's address 10.99.57.125; policy sees the backend, 10.7.1.2: allow that instead, to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 3306, protocol: TCP}]
    "#]].assert_eq(&format!("{}\n{}\n", said.code, said.message));
}

#[test]
fn pod_in_a_block() {
    let mut cluster = two_environments([egress("staging/p", "", [any_port([block("10.0.0.0/8")])])]);
    cluster.options.ipblock_matches_pods = Some(false);
    check_known(
        &cluster,
        ["staging/api", "qa-test/db", "3306/TCP"],
        &Known::default(),
        expect![[r#"
        pod-cidr-ipblock
        staging/p egress[0].to[0] allows 10.0.0.0/8, but this CNI does not match pods by ipBlock, and qa-test/db is a pod: select it, to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}, podSelector: {matchLabels: {app: db}}}]
    "#]],
    );
}

#[test]
fn api_server() {
    let node = Node { name: "cp".into(), labels: labels(""), ips: [ip("172.18.0.9")].into(), pod_cidrs: [].into() };
    let cluster = two_environments([egress("staging/p", "", [any_port([namespaces("")])])]).with([Object::Node(node)]);
    let known = through("default", "kubernetes", 443, "10.96.0.1");
    check_known(
        &cluster,
        ["staging/api", "node:cp", "6443/TCP"],
        &known,
        expect![[r#"
        apiserver
        The API server (default/kubernetes) is no pod that a selector could select. Add an egress rule: to: [{ipBlock: {cidr: 172.18.0.9/32}}], ports: [{port: 6443, protocol: TCP}]
    "#]],
    );
}

#[test]
fn dynamic_ports() {
    let deny = ingress("qa-test/default-deny-ingress", "", []);
    let active = Known { source_port: Some(20), ..Known::default() };
    check_known(
        &two_environments([deny]),
        ["203.0.113.21", "qa-test/frontend", "40123/TCP"],
        &active,
        expect![[r#"
        dynamic-ports
        The source port is 20: this looks like the data connection of active FTP, which the server opens to its client on a port chosen anew each time (here 40123). Use passive mode, or allow ports 1024-65535/TCP from 203.0.113.21 only.
    "#]],
    );
    let passive = egress("staging/ftp", "", [rule([block("203.0.113.21/32")], ["21/TCP"])]);
    check(
        [passive],
        ["staging/api", "203.0.113.21", "40123/TCP"],
        expect![[r#"
        dynamic-ports
        A rule allows port 21 to the same peer, and 40123 looks like one that FTP agrees on during the connection: allow the server's passive port range with endPort.
    "#]],
    );
    // Port 21 to somebody else proves nothing.
    let elsewhere = egress("staging/ftp", "", [rule([block("203.0.113.22/32")], ["21/TCP"])]);
    check(
        [elsewhere],
        ["staging/api", "203.0.113.21", "40123/TCP"],
        expect![[r#"
        no-rule
        No rule comes near; nearest is staging/ftp: egress[0].ports[0] 21/TCP | packet 40123/TCP; egress[0].to[0].ipBlock 203.0.113.22/32 | 203.0.113.21. To allow it, add a rule: {to: [{ipBlock: {cidr: 203.0.113.21/32}}], ports: [{port: 40123, protocol: TCP}]}
    "#]],
    );
}

#[test]
fn lockout_and_the_other_side() {
    check(
        [both("staging/test-np")],
        ["staging/api", "staging/db", "3306/TCP"],
        expect![[r#"
        lockout
        staging/test-np isolates egress of staging/api and no policy has an egress rule for it. Add one: {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 3306, protocol: TCP}]} Ingress of staging/db denies it too.
    "#]],
    );
}

#[test]
fn types_missing() {
    let allow = Policy { egress: [any_peer(["443/TCP"])].into(), ..ingress("staging/allow-https", "", [anything()]) };
    check(
        [egress("staging/deny", "", []), allow],
        ["staging/api", "8.8.8.8", "443/TCP"],
        expect![[r#"
        types-missing
        staging/allow-https allows it by egress[0], but its policyTypes does not list Egress, so the rule is not in force: add it to policyTypes.
    "#]],
    );
}

#[test]
fn snat() {
    let node = Node { name: "n2".into(), labels: labels(""), ips: [ip("172.18.0.2")].into(), pod_cidrs: [].into() };
    let np = ingress("staging/p", "app=api", [any_port([block("198.51.100.0/24")])]);
    let cluster = two_environments([np]).with([Object::Node(node)]);
    check_known(
        &cluster,
        ["node:n2", "staging/api", "8080/TCP"],
        &Known::default(),
        expect![[r#"
        snat-source
        staging/p ingress[0].from[0] allows 198.51.100.0/24; the packet came with the address of node n2, as clients of a NodePort or load balancer do after SNAT: set externalTrafficPolicy: Local on the service, or allow {ipBlock: {cidr: 172.18.0.2/32}}
    "#]],
    );
}

#[test]
fn icmp() {
    check(
        [both("staging/test-np")],
        ["staging/api", "staging/db", "icmp"],
        expect![[r#"
        icmp
        NetworkPolicy can't allow ICMP: its rules name TCP, UDP and SCTP only. Egress of staging/api is isolated (staging/test-np); whether ICMP passes then is this CNI's choice.
    "#]],
    );
}

#[test]
fn far_off() {
    let np = ingress("staging/db-np", "app=db", [rule([pods_in("env=staging", "app=api")], ["3306/TCP"])]);
    check(
        [np],
        ["qa-test/frontend", "staging/db", "80/TCP"],
        expect![[r#"
        no-rule
        No rule comes near; nearest is staging/db-np: ingress[0].ports[0] 3306/TCP | packet 80/TCP; ingress[0].from[0].namespaceSelector env=staging | namespace has env=qa; ingress[0].from[0].podSelector app=api | pod has app=frontend. To allow it, add a rule: {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}, podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 80, protocol: TCP}]}
    "#]],
    );
}

/// The YAML after `marker`, up to its closing brace.
fn yaml_after<'t>(text: &'t str, marker: &str) -> Option<&'t str> {
    let start = text.find(marker)? + marker.len();
    let mut depth = 0;
    let end = text[start..].find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0
    })?;
    Some(&text[start..=start + end])
}

/// A rule as the file reader takes it.
fn read_rule(direction: Direction, rule: &str) -> Rule {
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: x, namespace: x}}\nspec:\n  podSelector: {{}}\n  {direction}: [{rule}]\n"
    );
    let loaded = manifests::load_bytes("hint.yaml", text.as_bytes());
    assert!(loaded.problems.is_empty(), "{:?}\n{text}", loaded.problems);
    match &loaded.objects[0].object {
        Object::Policy(policy) => policy.rules(direction)[0].clone(),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// The YAML of a hint is YAML, and put where it says it allows the side that it speaks of.
    #[test]
    fn the_yaml_of_a_hint_allows_what_it_says((world, queries) in random::questions(20)) {
        let index = world.index();
        for query in &queries {
            let connection = world.connection(&index, query);
            let Some(hint) = verdict::hint(&index, &connection, &Options::default(), Asked::default()) else { continue };
            let before = verdict::judge(&index, &connection, &Options::default());
            prop_assert_eq!(before.result, record::VerdictResult::Denied);
            let (direction, side) = match before.egress.result {
                record::VerdictResult::Denied => (Direction::Egress, &before.egress),
                _ => (Direction::Ingress, &before.ingress),
            };
            let nearest = side.nearest.as_ref().unwrap();
            let mut changed: World = world.clone();
            let policy = changed.policies.iter_mut().find(|p| format!("{}/{}", p.namespace, p.name) == nearest.policy).unwrap();
            let rules = match direction { Direction::Ingress => &mut policy.ingress, Direction::Egress => &mut policy.egress };
            if let Some(rule) = yaml_after(&hint.message, "dd one: ").or_else(|| yaml_after(&hint.message, "add a rule: ")) {
                let added = read_rule(direction, rule);
                *rules = rules.iter().cloned().chain([added]).collect();
            } else if let Some(item) = yaml_after(&hint.message, " the item ") {
                let added = read_rule(direction, &format!("{{{}: [{item}]}}", direction.peers_field())).peers.unwrap();
                let at: usize = nearest.rule.as_ref().unwrap().split(['[', ']']).nth(1).unwrap().parse().unwrap();
                let peers = rules[at].peers.take().unwrap();
                rules[at].peers = Some(peers.into_iter().chain(added).collect());
            } else {
                continue;
            }
            let index = changed.index();
            let after = verdict::judge(&index, &changed.connection(&index, query), &Options::default());
            let after = if direction == Direction::Egress { after.egress } else { after.ingress };
            prop_assert_eq!(after.result, record::VerdictResult::Allowed, "{:?}", hint);
        }
    }
}
