//! The semantics of the API, one test for each point.

use netpol_trace::cluster::Object;
use netpol_trace::model::cluster::*;
use netpol_trace::model::{Str, VerdictResult};

use crate::mk::*;

/// Three pods a, b, c in each of x and y, 10.0.N.M, with `pod=NAME` and a port http=80/TCP.
fn world(policies: impl IntoIterator<Item = Policy>) -> Cluster {
    let mut pods = Vec::new();
    for (i, namespace) in ["x", "y"].into_iter().enumerate() {
        for (j, name) in ["a", "b", "c"].into_iter().enumerate() {
            let made =
                pod(&format!("{namespace}/{name}"), &format!("pod={name}"), &format!("10.0.{i}.{j} fd00::{i}:{j}"));
            pods.push(Pod { ports: [container_port("http=80/TCP")].into(), node: Some("n1".into()), ..made });
        }
    }
    cluster(pods, policies).with([namespace("x", "ns=x"), namespace("y", "ns=y")]).with(["n1", "n2"].map(|name| {
        let ips = [ip(&format!("192.168.0.{}", &name[1..]))].into();
        Object::Node(Node { name: name.into(), labels: labels(""), ips, pod_cidrs: [].into() })
    }))
}

#[test]
fn a01_no_policy_types_isolates_ingress_and_egress_only_with_egress_rules() {
    let by_default = world([policy("x/p", "")]);
    assert_eq!(by_default.says("y/a", "x/a", "80/TCP"), "denied ingress");
    assert_eq!(by_default.says("x/a", "y/a", "80/TCP"), "allowed");
    let with_egress = world([Policy { egress: [any_peer(["53/UDP"])].into(), ..policy("x/p", "") }]);
    assert_eq!(with_egress.says("x/a", "y/a", "80/TCP"), "denied egress");
    assert_eq!(with_egress.says("x/a", "y/a", "53/UDP"), "allowed");
}

#[test]
fn a02_rules_of_an_undeclared_direction_are_inert() {
    let cluster = world([Policy { ingress: [any_peer(["81/TCP"])].into(), ..egress("x/p", "", [anything()]) }]);
    assert_eq!(cluster.says("y/a", "x/a", "80/TCP"), "allowed");
    assert_eq!(cluster.verdict_of("y/a", "x/a", "80/TCP").ingress.isolated_by, []);
}

#[test]
fn a03_no_rules_allow_nothing_and_an_empty_rule_everything() {
    assert_eq!(world([ingress("x/p", "", [])]).says("y/a", "x/a", "80/TCP"), "denied ingress");
    assert_eq!(world([ingress("x/p", "", [anything()])]).says("y/a", "x/a", "80/TCP"), "allowed");
    assert_eq!(world([egress("x/p", "", [])]).says("x/a", "y/a", "80/TCP"), "denied egress");
    assert_eq!(world([egress("x/p", "", [anything()])]).says("x/a", "8.8.8.8", "53/UDP"), "allowed");
}

#[test]
fn a04_missing_and_empty_peers_or_ports_do_not_restrict() {
    for unrestricted in [any_port([]), any_peer([]), rule([], []), anything()] {
        let cluster = world([ingress("x/p", "", [unrestricted])]);
        assert_eq!(cluster.says("y/a", "x/a", "80/TCP"), "allowed");
        assert_eq!(cluster.says("8.8.8.8", "x/a", "1/SCTP"), "allowed");
    }
}

#[test]
fn a06_pod_selector_alone_is_the_policys_own_namespace() {
    let cluster = world([ingress("x/p", "", [any_port([pods("pod=a")])])]);
    assert_eq!(cluster.says("x/a", "x/b", "80/TCP"), "allowed");
    assert_eq!(cluster.says("y/a", "x/b", "80/TCP"), "denied ingress");
    assert_eq!(cluster.says("x/c", "x/b", "80/TCP"), "denied ingress");
}

#[test]
fn a06_namespace_selector_alone_is_all_pods_there() {
    let cluster = world([ingress("x/p", "", [any_port([namespaces("ns=y")])])]);
    assert_eq!(cluster.says("y/c", "x/b", "80/TCP"), "allowed");
    assert_eq!(cluster.says("x/c", "x/b", "80/TCP"), "denied ingress");
}

#[test]
fn a06_both_selectors_in_one_item_are_and_separate_items_or() {
    let and = world([ingress("x/p", "", [any_port([pods_in("ns=y", "pod=a")])])]);
    assert_eq!(and.says("y/a", "x/b", "80/TCP"), "allowed");
    assert_eq!(and.says("y/b", "x/b", "80/TCP"), "denied ingress");
    assert_eq!(and.says("x/a", "x/b", "80/TCP"), "denied ingress");
    let or = world([ingress("x/p", "", [any_port([namespaces("ns=y"), pods("pod=a")])])]);
    assert_eq!(or.says("y/a", "x/b", "80/TCP"), "allowed");
    assert_eq!(or.says("y/b", "x/b", "80/TCP"), "allowed");
    assert_eq!(or.says("x/a", "x/b", "80/TCP"), "allowed");
    assert_eq!(or.says("x/c", "x/b", "80/TCP"), "denied ingress");
}

#[test]
fn a07_an_empty_selector_is_everything_a_missing_one_is_not_the_same() {
    let own = world([ingress("x/p", "", [any_port([pods("")])])]);
    assert_eq!(own.says("x/a", "x/b", "80/TCP"), "allowed");
    assert_eq!(own.says("y/a", "x/b", "80/TCP"), "denied ingress");
    let all = world([ingress("x/p", "", [any_port([namespaces("")])])]);
    assert_eq!(all.says("y/a", "x/b", "80/TCP"), "allowed");
    assert_eq!(all.says("8.8.8.8", "x/b", "80/TCP"), "denied ingress");
}

#[test]
fn a08_requirements_are_anded_and_an_absent_key_satisfies_the_negative_ones() {
    let from = |text: &str| world([ingress("x/p", "", [any_port([pods(text)])])]).says("x/a", "x/b", "80/TCP");
    assert_eq!(from("pod=a; pod in (a,b)"), "allowed");
    assert_eq!(from("pod=a; pod in (b,c)"), "denied ingress");
    assert_eq!(from("absent notin (q)"), "allowed");
    assert_eq!(from("!absent"), "allowed");
    assert_eq!(from("absent in (q)"), "denied ingress");
    assert_eq!(from("absent"), "denied ingress");
    assert_eq!(from("pod notin (a)"), "denied ingress");
    assert_eq!(from("!pod"), "denied ingress");
    assert_eq!(from("pod"), "allowed");
}

#[test]
fn a09_both_directions_must_allow_and_policies_add_up_in_any_order() {
    let out = egress("x/out", "pod=a", [any_port([namespaces("ns=y")])]);
    let into = ingress("y/in", "pod=a", [any_port([pods_in("ns=x", "pod=b")])]);
    let cluster = world([out.clone(), into.clone()]);
    assert_eq!(cluster.says("x/a", "y/a", "80/TCP"), "denied ingress");
    assert_eq!(cluster.says("x/a", "x/b", "80/TCP"), "denied egress");
    let more = ingress("y/a-more", "", [any_port([namespaces("")])]);
    for policies in [[out.clone(), into.clone(), more.clone()], [more, into, out]] {
        let verdict = world(policies).verdict_of("x/a", "y/a", "80/TCP");
        assert_eq!(verdict.result, VerdictResult::Allowed);
        let names: Vec<_> = verdict.ingress.isolated_by.iter().map(|p| &*p.name).collect();
        assert_eq!(names, ["a-more", "in"]);
        let by = verdict.ingress.allowed_by.unwrap();
        assert_eq!((by.policy.as_str(), by.rule.as_str()), ("y/a-more", "ingress[0]"));
    }
}

#[test]
fn a09_both_sides_may_deny() {
    let cluster = world([ingress("x/p", "", []), egress("y/p", "", [])]);
    assert_eq!(cluster.says("y/a", "x/a", "80/TCP"), "denied both");
}

#[test]
fn a10_only_pods_are_subjects_and_only_in_the_policys_namespace() {
    let cluster = world([ingress("x/p", "", []), egress("x/p2", "", [])]);
    assert_eq!(cluster.says("8.8.8.8", "y/a", "80/TCP"), "allowed");
    assert_eq!(cluster.says("y/a", "8.8.8.8", "80/TCP"), "allowed");
    assert_eq!(cluster.says("node:n2", "8.8.8.8", "80/TCP"), "allowed");
    assert_eq!(cluster.says("node:n2", "x/a", "80/TCP"), "denied ingress");
    assert_eq!(cluster.says("8.8.8.8", "x/a", "80/TCP"), "denied ingress");
}

#[test]
fn a11_a_port_without_protocol_is_tcp_and_without_port_all_ports_of_it() {
    let cluster = world([ingress("x/p", "", [any_peer(["80", "any/SCTP"])])]);
    assert_eq!(cluster.says("y/a", "x/a", "80/TCP"), "allowed");
    assert_eq!(cluster.says("y/a", "x/a", "80/UDP"), "denied ingress");
    assert_eq!(cluster.says("y/a", "x/a", "9999/SCTP"), "allowed");
    assert_eq!(cluster.says("y/a", "x/a", "9999/TCP"), "denied ingress");
}

#[test]
fn a11_a_rule_for_another_protocol_still_isolates() {
    for other in ["any/UDP", "80/SCTP"] {
        let cluster = world([ingress("x/p", "", [any_peer([other])])]);
        assert_eq!(cluster.says("y/a", "x/a", "80/TCP"), "denied ingress");
    }
}

fn with_ports(key: &str, ports: &[&str]) -> Pod {
    Pod { ports: ports.iter().map(|p| container_port(p)).collect(), ..pod(key, "", "10.9.0.1") }
}

#[test]
fn a12_a_named_port_is_resolved_on_the_destination_pod_in_both_directions() {
    let pods =
        [with_ports("x/src", &["web=1/TCP"]), with_ports("y/d1", &["web=80/TCP"]), with_ports("y/d2", &["web=81/TCP"])];
    let policies = [egress("x/p", "", [any_peer(["web/TCP"])]), ingress("y/p", "", [any_peer(["web/TCP"])])];
    let cluster = cluster(pods, policies);
    assert_eq!(cluster.says("x/src", "y/d1", "80/TCP"), "allowed");
    assert_eq!(cluster.says("x/src", "y/d1", "81/TCP"), "denied both");
    assert_eq!(cluster.says("x/src", "y/d2", "81/TCP"), "allowed");
    assert_eq!(cluster.says("x/src", "y/d2", "1/TCP"), "denied both");
}

#[test]
fn a12_a_named_port_needs_the_protocol_too_and_never_matches_an_external_address() {
    let pods = [with_ports("x/src", &[]), with_ports("y/d", &["dns=53/UDP", "web=53/TCP"])];
    let cluster = cluster(pods, [egress("x/p", "", [any_peer(["dns/TCP", "web/UDP"])])]);
    assert_eq!(cluster.says("x/src", "y/d", "53/UDP"), "denied egress");
    assert_eq!(cluster.says("x/src", "y/d", "53/TCP"), "denied egress");
    let world = world([egress("x/p", "", [any_peer(["http/TCP"])])]);
    assert_eq!(world.says("x/a", "8.8.8.8", "80/TCP"), "denied egress");
    assert_eq!(world.says("x/a", "node:n2", "80/TCP"), "denied egress");
}

#[test]
fn a12_two_ports_of_one_name_both_count() {
    let pods = [with_ports("x/src", &[]), with_ports("y/d", &["web=80/TCP", "web=81/TCP"])];
    let cluster = cluster(pods, [ingress("y/p", "", [any_peer(["web/TCP"])])]);
    assert_eq!(cluster.says("x/src", "y/d", "80/TCP"), "allowed");
    assert_eq!(cluster.says("x/src", "y/d", "81/TCP"), "allowed");
}

#[test]
fn a13_a_native_sidecars_named_port_counts_with_a_note() {
    let sidecar = ContainerPort { sidecar: true, ..container_port("metrics=9090/TCP") };
    let pods = [pod("x/src", "", ""), Pod { ports: [sidecar].into(), ..pod("y/d", "", "") }];
    let cluster = cluster(pods, [ingress("y/p", "", [any_peer(["metrics/TCP"])])]);
    assert_eq!(cluster.says("x/src", "y/d", "9090/TCP"), "allowed");
    assert!(cluster.verdict_of("x/src", "y/d", "9090/TCP").notes[0].contains("sidecar"));
}

#[test]
fn a14_end_port_is_inclusive() {
    let cluster = world([ingress("x/p", "", [any_peer(["32000-32768/TCP"])])]);
    for (port, expected) in
        [("31999", "denied ingress"), ("32000", "allowed"), ("32768", "allowed"), ("32769", "denied ingress")]
    {
        assert_eq!(cluster.says("y/a", "x/a", &format!("{port}/TCP")), expected);
    }
}

#[test]
fn a15_an_address_excepted_by_one_rule_may_be_allowed_by_another() {
    let one = any_port([block("10.0.0.0/8 except 10.2.0.0/16")]);
    let cluster = world([egress("x/p", "", [one.clone()])]);
    assert_eq!(cluster.says("x/a", "10.1.2.3", "80/TCP"), "allowed");
    assert_eq!(cluster.says("x/a", "10.2.2.3", "80/TCP"), "denied egress");
    let other = egress("x/q", "", [any_port([block("10.2.2.0/24")])]);
    assert_eq!(world([egress("x/p", "", [one]), other]).says("x/a", "10.2.2.3", "80/TCP"), "allowed");
}

#[test]
fn a15_ipv4_and_ipv6_never_mix() {
    let v4 = world([egress("x/p", "", [any_port([block("0.0.0.0/0")])])]);
    assert_eq!(v4.says("x/a", "8.8.8.8", "80/TCP"), "allowed");
    assert_eq!(v4.says("x/a", "2001:db8::1", "80/TCP"), "denied egress");
    let v6 = world([egress("x/p", "", [any_port([block("::/0")])])]);
    assert_eq!(v6.says("x/a", "8.8.8.8", "80/TCP"), "denied egress");
    assert_eq!(v6.says("x/a", "2001:db8::1", "80/TCP"), "allowed");
}

#[test]
fn a15_an_ipv4_mapped_ipv6_address_or_block_means_the_ipv4_one() {
    let v4 = world([egress("x/p", "", [any_port([block("8.0.0.0/8")])])]);
    assert_eq!(v4.says("x/a", "::ffff:8.8.8.8", "80/TCP"), "allowed");
    let mapped = world([egress("x/p", "", [any_port([block("::ffff:8.0.0.0/104")])])]);
    assert_eq!(mapped.says("x/a", "8.8.8.8", "80/TCP"), "allowed");
    assert_eq!(mapped.says("x/a", "9.8.8.8", "80/TCP"), "denied egress");
    let all_v6 = world([egress("x/p", "", [any_port([block("::/0")])])]);
    assert_eq!(all_v6.says("x/a", "::ffff:8.8.8.8", "80/TCP"), "denied egress");
}

#[test]
fn a16_ipblock_against_a_pods_address_is_an_option_and_says_so() {
    let mut cluster = world([egress("x/p", "", [any_port([block("10.0.0.0/8")])])]);
    assert_eq!(cluster.says("x/a", "y/a", "80/TCP"), "allowed");
    assert!(cluster.verdict_of("x/a", "y/a", "80/TCP").notes[0].contains("ipBlock"));
    cluster.options.ipblock_matches_pods = Some(false);
    assert_eq!(cluster.says("x/a", "y/a", "80/TCP"), "denied egress");
    assert!(cluster.verdict_of("x/a", "y/a", "80/TCP").notes[0].contains("ipBlock"));
    cluster.options.ipblock_matches_pods = None;
    assert_eq!(cluster.says("x/a", "y/a", "80/TCP"), "undetermined undefined_ipblock");
    assert_eq!(cluster.says("x/a", "10.0.200.200", "80/TCP"), "allowed");
}

#[test]
fn a16_a_rule_that_needs_no_assumption_is_preferred() {
    let policies =
        [egress("x/p", "", [any_port([block("10.0.0.0/8")])]), egress("x/q", "", [any_port([namespaces("ns=y")])])];
    let verdict = world(policies).verdict_of("x/a", "y/a", "80/TCP");
    assert_eq!(verdict.egress.allowed_by.unwrap().policy, "x/q");
    assert_eq!(verdict.notes, Vec::<String>::new());
}

#[test]
fn a16_a_pod_by_name_matches_by_any_of_its_addresses_and_without_addresses_by_none() {
    let of = |text: &str| {
        cluster(
            [pod("x/a", "", ""), pod("y/dual", "", "10.0.0.1 fd00::1"), pod("y/none", "", "")],
            [egress("x/p", "", [any_port([block(text)])])],
        )
    };
    assert_eq!(of("10.0.0.0/8").says("x/a", "y/dual", "80/TCP"), "allowed");
    assert_eq!(of("fd00::/8").says("x/a", "y/dual", "80/TCP"), "allowed");
    assert_eq!(of("0.0.0.0/0").says("x/a", "y/none", "80/TCP"), "denied egress");
}

#[test]
fn a17_a_services_address_is_not_evaluated_as_if_policy_saw_it() {
    let service = Object::Service(Service {
        namespace: "y".into(),
        name: "svc".into(),
        uid: None,
        ips: [ip("10.96.0.1")].into(),
        ports: [].into(),
        selector: None,
    });
    let cluster = world([egress("x/p", "pod=a", [any_port([block("10.96.0.0/16")])])]).with([service]);
    assert_eq!(cluster.says("x/a", "10.96.0.1", "80/TCP"), "undetermined undefined_service_address");
    assert_eq!(cluster.says("x/a", "10.96.0.2", "80/TCP"), "allowed");
}

#[test]
fn a19_a_pod_and_its_own_node_may_talk_other_nodes_are_plain_addresses() {
    let mut cluster = world([ingress("x/p", "", []), egress("x/q", "", [any_port([block("192.168.0.2/32")])])]);
    assert_eq!(cluster.says("node:n1", "x/a", "80/TCP"), "allowed");
    assert_eq!(cluster.says("x/a", "node:n1", "80/TCP"), "allowed");
    assert!(cluster.verdict_of("node:n1", "x/a", "80/TCP").notes[0].contains("own node"));
    assert_eq!(cluster.says("node:n2", "x/a", "80/TCP"), "denied ingress");
    assert_eq!(cluster.says("x/a", "node:n2", "80/TCP"), "allowed");
    cluster.options.own_node_allowed = None;
    assert_eq!(cluster.says("node:n1", "x/a", "80/TCP"), "undetermined undefined_own_node");
    cluster.options.own_node_allowed = Some(false);
    assert_eq!(cluster.says("node:n1", "x/a", "80/TCP"), "denied ingress");
}

fn host_network(key: &str, with: &str) -> Pod {
    Pod { host_network: true, node: Some("n2".into()), ..pod(key, with, "192.168.0.2") }
}

#[test]
fn a20_a_host_network_pod_as_peer_is_undefined_where_it_matters() {
    let policies = [
        ingress("x/by-label", "pod=a", [any_port([pods("role=host")])]),
        ingress("x/by-block", "pod=b", [any_port([block("192.168.0.2/32")])]),
        ingress("x/all", "pod=c", [anything()]),
    ];
    let mut cluster = world(policies).with([Object::Pod(host_network("x/h", "role=host"))]);
    assert_eq!(cluster.says("x/h", "x/a", "80/TCP"), "undetermined undefined_host_network");
    assert_eq!(cluster.says("x/h", "x/b", "80/TCP"), "allowed");
    assert_eq!(cluster.says("x/h", "x/c", "80/TCP"), "allowed");
    cluster.options.host_network_is_pod = Some(true);
    assert_eq!(cluster.says("x/h", "x/a", "80/TCP"), "allowed");
    cluster.options.host_network_is_pod = Some(false);
    assert_eq!(cluster.says("x/h", "x/a", "80/TCP"), "denied ingress");
    assert!(cluster.verdict_of("x/h", "x/a", "80/TCP").notes[0].contains("hostNetwork"));
}

#[test]
fn a20_a_host_network_pod_as_subject_is_undefined_where_a_policy_would_isolate_it() {
    let mut cluster = world([ingress("x/p", "role=host", []), egress("x/q", "role=other", [])])
        .with([Object::Pod(host_network("x/h", "role=host"))]);
    assert_eq!(cluster.says("x/a", "x/h", "80/TCP"), "undetermined undefined_host_network");
    assert_eq!(cluster.verdict_of("x/a", "x/h", "80/TCP").ingress.isolated_by[0].name.as_ref(), "p");
    assert_eq!(cluster.says("x/h", "x/a", "80/TCP"), "allowed");
    cluster.options.host_network_is_pod = Some(true);
    assert_eq!(cluster.says("x/a", "x/h", "80/TCP"), "denied ingress");
    cluster.options.host_network_is_pod = Some(false);
    assert_eq!(cluster.says("x/a", "x/h", "80/TCP"), "allowed");
}

#[test]
fn a20_a_host_network_pod_on_the_pods_own_node_may_count_as_that_node() {
    let host = Pod { node: Some("n1".into()), ..host_network("x/h", "role=host") };
    let cluster = world([ingress("x/p", "", [any_port([pods("role=absent")])])]).with([Object::Pod(host)]);
    assert_eq!(cluster.says("x/h", "x/a", "80/TCP"), "undetermined undefined_host_network");
}

#[test]
fn a21_a_pod_may_always_reach_itself() {
    let cluster = world([ingress("x/p", "", []), egress("x/q", "", [])]);
    assert_eq!(cluster.says("x/a", "x/a", "80/TCP"), "allowed");
    assert_eq!(cluster.verdict_of("x/a", "x/a", "80/TCP").ingress.isolated_by.len(), 1);
    assert_eq!(cluster.says("x/a", "x/b", "80/TCP"), "denied both");
}

#[test]
fn a21_a_pod_template_stands_for_many_pods_and_is_not_itself() {
    let template = Pod { template: true, ..pod("x/web", "app=web", "") };
    let cluster = cluster([template], [ingress("x/p", "", [])]);
    assert_eq!(cluster.says("x/web", "x/web", "80/TCP"), "denied ingress");
}

#[test]
fn a23_icmp_and_other_protocols_are_undefined_under_isolation_only() {
    let mut cluster = world([ingress("x/p", "pod=a", [anything()])]);
    assert_eq!(cluster.says("y/a", "x/a", "icmp"), "undetermined undefined_icmp");
    assert_eq!(cluster.says("y/a", "x/a", "gre"), "undetermined undefined_protocol");
    assert_eq!(cluster.says("y/a", "x/b", "icmp"), "allowed");
    cluster.options.other_protocols_pass = Some(true);
    assert_eq!(cluster.says("y/a", "x/a", "icmp"), "allowed");
    assert!(cluster.verdict_of("y/a", "x/a", "icmp").notes[0].contains("can't name"));
    cluster.options.other_protocols_pass = Some(false);
    assert_eq!(cluster.says("y/a", "x/a", "icmp"), "allowed");
    let mut ports = world([ingress("x/p", "pod=a", [any_peer(["any/TCP", "any/UDP"])])]);
    ports.options.other_protocols_pass = Some(false);
    assert_eq!(ports.says("y/a", "x/a", "icmp"), "denied ingress");
}

#[test]
fn a24_a_finished_pod_does_not_own_its_address_a_terminating_one_stays_subject() {
    let over = Pod { phase: PodPhase::Succeeded, ..pod("x/job", "", "10.5.0.1") };
    let dying = Pod { terminating: true, ..pod("x/dying", "", "10.5.0.2") };
    let cluster = cluster([over, dying], [ingress("x/p", "", [])]);
    use netpol_trace::cluster::index::AddressOwner;
    assert!(matches!(cluster.index.owner_of(ip("10.5.0.1")), AddressOwner::None));
    assert!(matches!(cluster.index.owner_of(ip("10.5.0.2")), AddressOwner::Pod(_)));
    assert_eq!(cluster.says("8.8.8.8", "x/dying", "80/TCP"), "denied ingress");
}

#[test]
fn a25_the_namespaces_name_label_is_known_even_without_its_object() {
    let policies = |text| [ingress("x/p", "", [any_port([namespaces(text)])])];
    let of = |text| cluster([pod("x/a", "", ""), pod("y/b", "", "")], policies(text)).says("y/b", "x/a", "80/TCP");
    assert_eq!(of("kubernetes.io/metadata.name=y"), "allowed");
    assert_eq!(of("kubernetes.io/metadata.name notin (y)"), "denied ingress");
    assert_eq!(of(""), "allowed");
    assert_eq!(of("env=prod"), "undetermined undefined_namespace_labels");
    assert_eq!(of("env=prod; kubernetes.io/metadata.name=z"), "denied ingress");
}

#[test]
fn a27_policies_of_other_apis_are_named_in_a_note() {
    let other = |kind: &str, namespace: Option<&str>, name: &str| {
        let namespace = namespace.map(Str::from);
        Object::OtherPolicy(OtherPolicy { group: "cilium.io".into(), kind: kind.into(), namespace, name: name.into() })
    };
    let cluster = world([]).with([
        other("CiliumNetworkPolicy", Some("elsewhere"), "not-ours"),
        other("CiliumNetworkPolicy", Some("x"), "l7"),
        other("AdminNetworkPolicy", None, "p0"),
    ]);
    let notes = cluster.verdict_of("x/a", "x/b", "80/TCP").notes;
    let expected =
        "covers NetworkPolicy v1 only; also present, not evaluated: AdminNetworkPolicy p0, CiliumNetworkPolicy x/l7";
    assert_eq!(notes, [expected]);
    assert!(cluster.verdict_of("y/a", "8.8.8.8", "80/TCP").notes[0].ends_with(": AdminNetworkPolicy p0"));
    let many = cluster.with((0..1000).map(|i| other("CiliumNetworkPolicy", Some("x"), &format!("n{i}"))));
    assert!(many.verdict_of("x/a", "x/b", "80/TCP").notes[0].ends_with(" and 999 more"));
}

#[test]
fn an_unknown_peer_is_allowed_by_a_rule_for_any_peer_and_else_undetermined() {
    let policies = [
        ingress("x/any", "pod=a", [any_peer(["80/TCP"])]),
        ingress("x/label", "pod=b", [any_port([pods("app=web")])]),
        ingress("x/block", "pod=c", [any_port([block("10.0.0.0/8")])]),
    ];
    let cluster = world(policies);
    let from = |to, port| cluster.says("unknown:10.200.0.9", to, port);
    // The unknown endpoint's own egress is not known either, so nothing better than undetermined can come out …
    assert_eq!(from("x/a", "80/TCP"), "undetermined addresses_only");
    assert_eq!(cluster.verdict_of("unknown:10.200.0.9", "x/a", "80/TCP").ingress.result, VerdictResult::Allowed);
    assert_eq!(cluster.verdict_of("unknown:10.200.0.9", "x/b", "80/TCP").ingress.result, VerdictResult::Undetermined);
    assert_eq!(cluster.verdict_of("unknown:10.200.0.9", "x/c", "80/TCP").ingress.result, VerdictResult::Allowed);
    // … but a port that no rule names, or an address outside of every block, is denied whoever sends.
    assert_eq!(from("x/a", "81/TCP"), "denied ingress");
    assert_eq!(cluster.says("unknown:11.0.0.9", "x/c", "80/TCP"), "denied ingress");
    assert_eq!(cluster.says("unknown", "x/c", "80/TCP"), "undetermined addresses_only");
}

#[test]
fn an_unknown_port_is_allowed_by_a_rule_for_any_port_and_else_undetermined() {
    let cluster =
        world([ingress("x/p", "pod=a", [any_peer(["80/TCP", "any/UDP"])]), ingress("x/q", "pod=b", [anything()])]);
    assert_eq!(cluster.says("y/a", "x/a", "?/TCP"), "undetermined addresses_only");
    assert_eq!(cluster.says("y/a", "x/a", "?/UDP"), "allowed");
    assert_eq!(cluster.says("y/a", "x/a", "?/SCTP"), "denied ingress");
    assert_eq!(cluster.says("y/a", "x/b", "?/TCP"), "allowed");
}
