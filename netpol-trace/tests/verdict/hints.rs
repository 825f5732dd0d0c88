//! The hint for each mistake, and none without evidence.

use expect_test::{Expect, expect};
use netpol_trace::cluster::Object;
use netpol_trace::model::cluster::*;
use netpol_trace::model::{Address, ServiceRef};
use netpol_trace::policy;
use netpol_trace::policy::ClientRequest;
use netpol_trace::policy::lint::catalogue;

use crate::mk::*;
use crate::nearest::two_environments;

/// Codes of plain misses, which are not in the lint catalogue.
const PLAIN: [&str; 5] = ["peer-label", "peer-namespace", "ip-block", "port", "no-rule"];

#[derive(Default)]
pub(crate) struct TestRequest {
    pub service: Option<ServiceRef>,
    pub original: Option<Address>,
    pub source_port: Option<u16>,
}

pub(crate) fn through(namespace: &str, name: &str, port: u16, address: &str) -> TestRequest {
    TestRequest {
        service: Some(ServiceRef { namespace: namespace.into(), name: name.into(), port: Some(port) }),
        original: Some(Address { ip: ip(address), port: Some(port) }),
        source_port: None,
    }
}

pub(crate) fn hint(cluster: &Cluster, query: [&str; 3], known: &TestRequest) -> Option<netpol_trace::model::Hint> {
    let connection = connection(&cluster.index, query[0], query[1], query[2]);
    let request = ClientRequest {
        service: known.service.as_ref(),
        original: known.original.as_ref(),
        source_port: known.source_port,
    };
    policy::hint(&cluster.index, &connection, &cluster.options, request)
}

pub(crate) fn check_known(cluster: &Cluster, query: [&str; 3], known: &TestRequest, expected: Expect) {
    let found = hint(cluster, query, known);
    assert!(found.as_ref().is_none_or(|h| PLAIN.contains(&&*h.code) || catalogue::find(&h.code).is_some()));
    let text = found.map_or("none\n".to_owned(), |h| format!("{}\n{}\n", h.code, h.message));
    expected.assert_eq(&text);
}

pub(crate) fn check(policies: impl IntoIterator<Item = Policy>, query: [&str; 3], expected: Expect) {
    check_known(&two_environments(policies), query, &TestRequest::default(), expected);
}

pub(crate) fn both(key: &str) -> Policy {
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
            staging/p egress[0].ports[0] names its port http, and only pods have port names: write port: 80, protocol: TCP.
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
            staging/p ingress[0].ports[0] leaves protocol out, which means TCP; the packet is 3306/UDP: add protocol: UDP.
        "#]],
    );
    let explicit = ingress("staging/p", "app=db", [any_peer(["3306/TCP"])]);
    check(
        [explicit],
        ["staging/api", "staging/db", "3306/UDP"],
        expect![[r#"
            port
            staging/p ingress[0].ports[0] allows 3306/TCP; the packet is 3306/UDP: add {port: 3306, protocol: UDP} to its ports.
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
            staging/p ingress[0].from[0] has only a podSelector, which selects in namespace staging; qa-test/api is in another namespace: add to the same item namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}
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
        &TestRequest::default(),
        expect![[r#"
            peer-label
            No rule allows staging/bare, and it has no label to select it by: give its workload one (such as app: bare), and allow that label.
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
            staging/p egress[0].to[0] selects pods, and 93.184.216.34 is not a pod: add to egress[0].to the item {ipBlock: {cidr: 93.184.216.34/32}}
        "#]],
    );
    check(
        [egress("staging/p", "", [any_port([block("0.0.0.0/0 except 93.0.0.0/8")])])],
        query,
        expect![[r#"
            ip-block
            staging/p egress[0].to[0] allows 0.0.0.0/0 except 93.0.0.0/8, and 93.184.216.34 lies in that exception: add to egress[0].to the item {ipBlock: {cidr: 93.184.216.34/32}}
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
            staging/p egress[0].to[0] allows 0.0.0.0/0, which is IPv4 only, and the peer is 2001:db8::1: add an ipBlock with cidr ::/0.
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
            staging/allow-https allows it by egress[0], but its policyTypes does not list Egress, so the rule is not in force: add Egress to policyTypes.
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
        &TestRequest::default(),
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
            NetworkPolicy can't allow ICMP: its rules name TCP, UDP and SCTP only. Egress of staging/api is isolated (staging/test-np), and this CNI decides whether ICMP passes: test with a TCP connection instead of ping.
        "#]],
    );
}

#[test]
fn host_network_peer() {
    let agent = Object::Pod(Pod { host_network: true, ..pod("staging/agent", "app=agent", "172.18.0.2") });
    let np = ingress("staging/p", "app=api", [any_port([pods("app=agent")])]);
    let mut cluster = two_environments([np]).with([agent]);
    let query = ["staging/agent", "staging/api", "8080/TCP"];
    check_known(
        &cluster,
        query,
        &TestRequest::default(),
        expect![[r#"
        hostnet-peer
        staging/agent uses its node's network, so most CNIs don't select it by its labels: allow 172.18.0.2/32 by ipBlock instead.
    "#]],
    );
    cluster.options.host_network_is_pod = Some(false);
    check_known(
        &cluster,
        query,
        &TestRequest::default(),
        expect![[r#"
        hostnet-peer
        staging/p ingress[0].from[0] selects by label, and staging/agent uses its node's network: this CNI sees the node's address. Allow that: from: [{ipBlock: {cidr: 172.18.0.2/32}}]
    "#]],
    );
}

#[test]
fn none_for_an_address_without_a_known_owner() {
    let np = ingress("staging/p", "app=api", [any_port([block("10.0.0.0/8")])]);
    check(
        [np],
        ["unknown:192.0.2.9", "staging/api", "8080/TCP"],
        expect![[r#"
        none
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
