//! The YAML in a hint does what the hint says.

use netpol_trace::cluster::Object;
use netpol_trace::cluster::manifests;
use netpol_trace::model::cluster::*;
use netpol_trace::policy;
use netpol_trace::policy::{ClientRequest, CniOptions};
use proptest::prelude::*;

use crate::oracle::World;
use crate::random;

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

/// A rule as the manifest reader parses it.
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

    /// The YAML of a hint is valid, and where the hint puts it, it allows the side that the hint explains.
    #[test]
    fn the_yaml_of_a_hint_allows_what_it_says((world, queries) in random::questions(20)) {
        let index = world.index();
        for query in &queries {
            let connection = world.connection(&index, query);
            let Some(hint) = policy::hint(&index, &connection, &CniOptions::default(), ClientRequest::default()) else { continue };
            let before = policy::verdict_of(&index, &connection, &CniOptions::default());
            prop_assert_eq!(before.result, netpol_trace::model::VerdictResult::Denied);
            let (direction, side) = match before.egress.result {
                netpol_trace::model::VerdictResult::Denied => (Direction::Egress, &before.egress),
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
            let after = policy::verdict_of(&index, &changed.connection(&index, query), &CniOptions::default());
            let after = if direction == Direction::Egress { after.egress } else { after.ingress };
            prop_assert_eq!(after.result, netpol_trace::model::VerdictResult::Allowed, "{:?}", hint);
        }
    }
}
