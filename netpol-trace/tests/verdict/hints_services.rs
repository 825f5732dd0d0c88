//! Hints by the service or protocol in use.

use expect_test::expect;
use netpol_trace::cluster::Object;
use netpol_trace::model::cluster::*;
use netpol_trace::policy;
use netpol_trace::policy::ClientRequest;

use crate::hints::{TestRequest, both, check, check_known, through};
use crate::mk::*;
use crate::nearest::two_environments;

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
            staging/dns egress[0] allows 53/UDP only, and the packet is 53/TCP: add {port: 53, protocol: TCP} to its ports, because DNS needs both UDP and TCP.
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
    let connection = policy::Connection {
        destination: policy::PolicyEndpoint::external(ip("169.254.20.10")),
        ..connection(&cluster.index, "staging/api", "169.254.20.10", "53/UDP")
    };
    let hint = policy::hint(&cluster.index, &connection, &cluster.options, ClientRequest::default()).unwrap();
    assert_eq!(hint.code, "dns-nodelocal");
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
    // The packet does not show the service, but only one has this pod behind it.
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
        &TestRequest::default(),
        expect![[r#"
        svc-port
        staging/api-np ingress[0].ports[0] holds 80, the port of service staging/api-svc; policy sees the pod's own port: write 8080.
    "#]],
    );
    // Without a service the port is only another one.
    check(
        [np()],
        query,
        expect![[r#"
            port
            staging/api-np ingress[0].ports[0] allows 80/TCP; the packet is 8080/TCP: add {port: 8080, protocol: TCP} to its ports.
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
    let request =
        ClientRequest { service: known.service.as_ref(), original: known.original.as_ref(), source_port: None };
    let hint = policy::hint(&cluster.index, &connection, &cluster.options, request).unwrap();
    expect![[r#"
        clusterip-ipblock
        staging/p egress[0].to[0].ipBlock allows 10.96.0.0/12, which holds the service's address 10.99.57.125; policy sees the backend, 10.7.1.2: allow that instead, to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 3306, protocol: TCP}]
    "#]].assert_eq(&format!("{}\n{}\n", hint.code, hint.message));
}

#[test]
fn pod_in_a_block() {
    let mut cluster = two_environments([egress("staging/p", "", [any_port([block("10.0.0.0/8")])])]);
    cluster.options.ipblock_matches_pods = Some(false);
    check_known(
        &cluster,
        ["staging/api", "qa-test/db", "3306/TCP"],
        &TestRequest::default(),
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
            The API server (default/kubernetes) is not a pod, so no selector selects it. Add an egress rule: to: [{ipBlock: {cidr: 172.18.0.9/32}}], ports: [{port: 6443, protocol: TCP}]
        "#]],
    );
}

#[test]
fn dynamic_ports() {
    let deny = ingress("qa-test/default-deny-ingress", "", []);
    let active = TestRequest { source_port: Some(20), ..TestRequest::default() };
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
    // Port 21 to another peer proves nothing.
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
