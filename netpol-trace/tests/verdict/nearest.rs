//! The nearest rule: which one it is, in which words, and that its misses' fixes make it match.

use expect_test::{Expect, expect};
use netpol_trace::cluster::Index;
use netpol_trace::model::Str;
use netpol_trace::model::cluster::*;
use netpol_trace::policy;
use netpol_trace::policy::CniOptions;
use proptest::prelude::*;

use crate::mk::*;
use crate::oracle::{Party, Query, World};
use crate::random;

/// qa-test (env=qa) and staging (env=staging), each with frontend, api and db.
pub(crate) fn two_environments(policies: impl IntoIterator<Item = Policy>) -> Cluster {
    let mut pods = Vec::new();
    for (i, namespace) in ["qa-test", "staging"].into_iter().enumerate() {
        for (j, app) in ["frontend", "api", "db"].into_iter().enumerate() {
            pods.push(pod(&format!("{namespace}/{app}"), &format!("app={app}"), &format!("10.7.{i}.{j}")));
        }
    }
    let dns = Pod {
        ports: ["dns=53/UDP", "dns-tcp=53/TCP", "metrics=9153/TCP"].map(container_port).into(),
        ..pod("kube-system/dns", "k8s-app=kube-dns", "10.7.9.9")
    };
    pods.push(dns);
    cluster(pods, policies).with([
        namespace("qa-test", "env=qa"),
        namespace("staging", "env=staging"),
        namespace("kube-system", ""),
    ])
}

fn check(policies: impl IntoIterator<Item = Policy>, query: [&str; 3], expected: Expect) {
    let verdict = two_environments(policies).verdict_of(query[0], query[1], query[2]);
    let mut text = String::new();
    for (direction, side) in [("egress", verdict.egress), ("ingress", verdict.ingress)] {
        let Some(nearest) = side.nearest else { continue };
        text += &format!("{direction}: {} {}\n", nearest.policy, nearest.rule.as_deref().unwrap_or("-"));
        for miss in &nearest.misses {
            text += &format!("  {}\n", miss);
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn a_pods_label() {
    let np = ingress("staging/db-np", "app=db", [rule([pods("role=ops"), pods("app=api")], ["3306/TCP"])]);
    check(
        [np],
        ["staging/frontend", "staging/db", "3306/TCP"],
        expect![[r#"
        ingress: staging/db-np ingress[0]
          ingress[0].from[1].podSelector app=api | pod has app=frontend
    "#]],
    );
}

#[test]
fn a_namespaces_label() {
    let np = ingress("staging/db-np", "app=db", [any_port([pods_in("env=staging", "app=api")])]);
    check(
        [np],
        ["qa-test/api", "staging/db", "3306/TCP"],
        expect![[r#"
        ingress: staging/db-np ingress[0]
          ingress[0].from[0].namespaceSelector env=staging | namespace has env=qa
    "#]],
    );
}

#[test]
fn a_pod_selector_without_namespace_selector_is_the_own_namespace() {
    let np = ingress("staging/db-np", "app=db", [any_port([pods("app=api")])]);
    check(
        [np],
        ["qa-test/api", "staging/db", "3306/TCP"],
        expect![[r#"
        ingress: staging/db-np ingress[0]
          ingress[0].from[0].namespaceSelector namespace staging (the policy's own: no namespaceSelector) | namespace qa-test
    "#]],
    );
}

#[test]
fn several_labels_and_absent_ones() {
    let np =
        ingress("staging/db-np", "app=db", [any_port([pods("app=api; tier=back; !canary; env in (a,b); x; y; z")])]);
    check(
        [np],
        ["staging/frontend", "staging/db", "3306/TCP"],
        expect![[r#"
        ingress: staging/db-np ingress[0]
          ingress[0].from[0].podSelector app=api,tier=back,env in (a,b),x and 2 more | pod has app=frontend,no tier label,no env label,no x label and 2 more
    "#]],
    );
}

#[test]
fn a_protocol() {
    let np = egress(
        "staging/dns",
        "",
        [rule([namespaces("kubernetes.io/metadata.name=kube-system")], ["53/UDP", "9153/UDP"])],
    );
    check(
        [np],
        ["staging/api", "kube-system/dns", "53/TCP"],
        expect![[r#"
        egress: staging/dns egress[0]
          egress[0].ports[0] 53/UDP | packet 53/TCP
    "#]],
    );
}

#[test]
fn a_port_range() {
    let np = egress("staging/p", "", [any_peer(["1024-2048/TCP"])]);
    check(
        [np],
        ["staging/api", "8.8.8.8", "443/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].ports[0] 1024-2048/TCP | packet 443/TCP
    "#]],
    );
}

#[test]
fn a_named_port_shows_what_the_pod_has() {
    let np = || egress("staging/p", "", [any_peer(["http/TCP"])]);
    check(
        [np()],
        ["staging/api", "kube-system/dns", "9153/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].ports[0] http/TCP | packet 9153/TCP (pod has dns=53/UDP,dns-tcp=53/TCP,metrics=9153/TCP)
    "#]],
    );
    check(
        [np()],
        ["staging/api", "staging/db", "9153/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].ports[0] http/TCP | packet 9153/TCP (pod has no named ports)
    "#]],
    );
    check(
        [np()],
        ["staging/api", "8.8.8.8", "80/TCP"],
        expect![[r#"
            egress: staging/p egress[0]
              egress[0].ports[0] http/TCP | packet 80/TCP (only pods have port names)
        "#]],
    );
    let metrics = egress("staging/p", "", [any_peer(["metrics/TCP"])]);
    check(
        [metrics],
        ["staging/api", "kube-system/dns", "9999/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].ports[0] metrics/TCP | packet 9999/TCP (pod has metrics=9153/TCP)
    "#]],
    );
}

#[test]
fn an_ip_block() {
    let np = |text: &str| egress("staging/p", "", [any_port([block(text)])]);
    check(
        [np("10.0.0.0/8 except 10.2.0.0/16")],
        ["staging/api", "10.2.3.4", "80/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].to[0].ipBlock 10.0.0.0/8 except 10.2.0.0/16 | 10.2.3.4
    "#]],
    );
    check(
        [np("10.0.0.0/8 except 10.2.0.0/16")],
        ["staging/api", "8.8.8.8", "80/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].to[0].ipBlock 10.0.0.0/8 except 10.2.0.0/16 | 8.8.8.8
    "#]],
    );
    check(
        [np("0.0.0.0/0")],
        ["staging/api", "2001:db8::1", "80/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].to[0].ipBlock 0.0.0.0/0 | 2001:db8::1
    "#]],
    );
    let many = "0.0.0.0/0 except 1.0.0.0/8,2.0.0.0/8,3.0.0.0/8,4.0.0.0/8,5.0.0.0/8,6.0.0.0/8";
    check(
        [np(many)],
        ["staging/api", "6.6.6.6", "80/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].to[0].ipBlock 0.0.0.0/0 except 6.0.0.0/8,1.0.0.0/8,2.0.0.0/8,3.0.0.0/8 and 2 more | 6.6.6.6
    "#]],
    );
}

#[test]
fn a_selector_for_an_outside_address() {
    let np = egress("staging/p", "", [any_port([pods_in("env=qa", "app=api")])]);
    check(
        [np],
        ["staging/api", "93.184.216.34", "80/TCP"],
        expect![[r#"
        egress: staging/p egress[0]
          egress[0].to[0] pods app=api in namespaces env=qa | 93.184.216.34 (outside of the cluster)
    "#]],
    );
}

#[test]
fn no_rules_at_all() {
    let np = Policy {
        declared_types: Some([Direction::Ingress, Direction::Egress].into()),
        ..policy("staging/test-np", "")
    };
    check(
        [np],
        ["staging/api", "staging/db", "3306/TCP"],
        expect![[r#"
        egress: staging/test-np -
          egress a rule | no rules
        ingress: staging/test-np -
          ingress a rule | no rules
    "#]],
    );
}

#[test]
fn a_matching_rule_whose_direction_is_not_declared() {
    let deny = egress("staging/deny", "", []);
    let allow = Policy { egress: [any_peer(["53/UDP"])].into(), ..ingress("staging/allow-dns", "", [anything()]) };
    check(
        [deny, allow],
        ["staging/api", "kube-system/dns", "53/UDP"],
        expect![[r#"
        egress: staging/allow-dns egress[0]
          policyTypes Egress | Ingress
    "#]],
    );
}

#[test]
fn fewest_misses_come_first_then_the_smallest_then_the_order() {
    let far = ingress(
        "staging/a-far",
        "app=db",
        [rule([pods("app=frontend")], ["80/TCP"]), any_port([pods("app=ops; tier=x")])],
    );
    let near = ingress("staging/b-near", "app=db", [any_port([pods("app=ops")]), any_port([pods("app=frontend")])]);
    check(
        [far, near],
        ["staging/api", "staging/db", "3306/TCP"],
        expect![[r#"
        ingress: staging/b-near ingress[0]
          ingress[0].from[0].podSelector app=ops | pod has app=api
    "#]],
    );
}

#[test]
fn a_hostile_selector_gives_a_bounded_text() {
    let many: Vec<String> = (0..10_000).map(|i| format!("key{i} in (v{i},w{i})")).collect();
    let np = ingress("staging/p", "app=db", [any_port([pods(&many.join("; "))])]);
    let long =
        ingress("staging/q", "app=db", [any_port([pods(&format!("app in ({})", vec!["value"; 10_000].join(",")))])]);
    for policy in [np, long] {
        let nearest =
            two_environments([policy]).verdict_of("staging/api", "staging/db", "80/TCP").ingress.nearest.unwrap();
        let size: usize = nearest.misses.iter().map(|m| m.field.len() + m.want.len() + m.have.len()).sum();
        assert!(size < 1000, "{size}");
    }
}

/// Makes the part of the policy that `miss` names fit the query, and nothing else.
fn fix(policy: &mut Policy, direction: Direction, miss: &netpol_trace::model::Miss, world: &World, query: &Query) {
    let other = if direction == Direction::Egress { &query.to } else { &query.from };
    let rules = match direction {
        Direction::Ingress => &mut policy.ingress,
        Direction::Egress => &mut policy.egress,
    };
    if miss.field == direction.as_str() {
        *rules = [anything()].into();
        return;
    }
    if miss.field == "policyTypes" {
        let declared = policy.declared_types.iter().flatten().copied();
        policy.declared_types = Some(declared.chain([direction]).collect());
        return;
    }
    let numbers: Vec<usize> = miss.field.split(['[', ']']).filter_map(|part| part.parse().ok()).collect();
    let rule = &mut rules[numbers[0]];
    if miss.field.contains(".ports[") {
        let port = PortSpec::Range(query.port, query.port);
        rule.ports.as_mut().unwrap()[numbers[1]] =
            PortMatch { protocol: query.protocol, protocol_defaulted: false, port };
        return;
    }
    let host = |ip: std::net::IpAddr| Peer::Block { cidr: ip.into(), except: [].into() };
    let name_label = |namespace: &Str| selector(&format!("kubernetes.io/metadata.name={namespace}"));
    let peer = &mut rule.peers.as_mut().unwrap()[numbers[1]];
    match (other, peer) {
        (Party::External(ip) | Party::Node(_, ip), peer) => *peer = host(*ip),
        (Party::Pod(at), peer @ Peer::Block { .. }) => {
            let pod = &world.pods[*at];
            *peer = match pod.ips.first() {
                Some(ip) => host(*ip),
                None => Peer::Pods { namespaces: Some(name_label(&pod.namespace)), pods: None },
            };
        }
        (Party::Pod(at), Peer::Pods { namespaces, pods }) => {
            let pod = &world.pods[*at];
            let fitting = |selector: &Selector, labels: &Labels| Selector {
                requirements: selector.requirements.iter().filter(|r| r.matches(labels)).cloned().collect(),
            };
            if miss.field.ends_with(".podSelector") {
                *pods = pods.as_ref().map(|s| fitting(s, &pod.labels));
            } else {
                let namespace = world.namespaces.iter().find(|n| n.name == pod.namespace).unwrap();
                *namespaces = Some(match namespaces {
                    Some(s) => fitting(s, &namespace.labels),
                    None => name_label(&pod.namespace),
                });
            }
        }
    }
}

/// The world's verdict on one side with `policy` in place of its old self and no other policies.
fn side_with(world: &World, policy: Policy, query: &Query, direction: Direction) -> netpol_trace::model::Side {
    let alone = World { policies: vec![policy], ..world.clone() };
    let index: Index = alone.index();
    let verdict = policy::verdict_of(&index, &alone.connection(&index, query), &CniOptions::default());
    if direction == Direction::Egress { verdict.egress } else { verdict.ingress }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_misses_fixes_turn_the_rule_into_a_match((world, queries) in random::questions(20)) {
        let index = world.index();
        for query in &queries {
            let verdict = policy::verdict_of(&index, &world.connection(&index, query), &CniOptions::default());
            for (direction, side) in [(Direction::Egress, &verdict.egress), (Direction::Ingress, &verdict.ingress)] {
                let Some(nearest) = &side.nearest else { continue };
                let policy = world.policies.iter().find(|p| format!("{}/{}", p.namespace, p.name) == nearest.policy).unwrap();
                prop_assert!(!nearest.misses.is_empty());
                let mut fixed = policy.clone();
                nearest.misses.iter().for_each(|miss| fix(&mut fixed, direction, miss, &world, query));
                let after = side_with(&world, fixed, query, direction);
                prop_assert_eq!(after.result, netpol_trace::model::VerdictResult::Allowed, "{:?}", nearest);
                let rule = nearest.rule.clone().unwrap_or_else(|| format!("{direction}[0]"));
let by = after.allowed_by.map(|by| by.rule);
                // Of two rules that both come into force, the one that rests on no assumption is named.
                prop_assert!(by == Some(rule) || nearest.misses[0].field == "policyTypes", "{:?}: {:?}", nearest, by);
                // Each one is needed: without it the rule still does not match.
                for without in 0..nearest.misses.len() {
                    let mut partly = policy.clone();
                    let others = nearest.misses.iter().enumerate().filter(|(i, _)| *i != without);
                    others.for_each(|(_, miss)| fix(&mut partly, direction, miss, &world, query));
                    let still = side_with(&world, partly, query, direction);
                    prop_assert!(still.allowed_by.is_none(), "{:?} does not need {}", nearest, without);
                }
            }
        }
    }
}
