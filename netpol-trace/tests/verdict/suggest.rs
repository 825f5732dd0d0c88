//! A suggestion allows its connection, denies nothing new, and allows nothing else that it does not list.

use std::sync::atomic::{AtomicU64, Ordering};

use netpol_trace::cluster::Index;
use netpol_trace::cluster::Object;
use netpol_trace::cluster::manifests::load_bytes;
use netpol_trace::model::VerdictResult;
use netpol_trace::model::cluster::Direction;
use netpol_trace::policy;
use netpol_trace::policy::suggest::{NoSuggestion, OpenedPair};
use netpol_trace::policy::{CniOptions, Connection, PolicyEndpoint, PolicyIdentity, PolicyResult, suggest};
use proptest::prelude::*;

use crate::random;

/// Allowed in `direction`?
fn allows(index: &Index, connection: &Connection<'_>, direction: Direction) -> bool {
    let evaluation = policy::evaluate(index, &suggest::rebind(index, connection), &CniOptions::default());
    matches!(evaluation.side(direction).result, PolicyResult::Allowed(_))
}

fn name(end: PolicyEndpoint<'_>) -> String {
    match (end.identity, end.ip) {
        (PolicyIdentity::Pod(view), _) => format!("{}/{}", view.pod.namespace, view.pod.name),
        (_, Some(ip)) => ip.to_string(),
        (PolicyIdentity::Node(name), None) => name.to_owned(),
        (_, None) => "unknown".to_owned(),
    }
}

static SUGGESTED: AtomicU64 = AtomicU64::new(0);

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    fn suggestions_open_what_they_say((world, queries) in random::questions(24)) {
        let index = world.index();
        let options = CniOptions::default();
        for query in &queries {
            let connection = world.connection(&index, query);
            let before = policy::verdict_of(&index, &connection, &options);
            let changes = match suggest::suggest(&index, &connection, &options) {
                Ok(changes) => changes,
                Err(NoSuggestion::Allowed) => {
                    prop_assert_eq!(before.result, VerdictResult::Allowed);
                    continue;
                }
                Err(other) => {
                    prop_assert!(before.result != VerdictResult::Allowed, "{other}");
                    continue;
                }
            };
            SUGGESTED.fetch_add(1, Ordering::Relaxed);
            let mut after = index.clone();
            for change in &changes {
                after.upsert(Object::Policy(change.policy.clone()));
            }
            let now = policy::verdict_of(&after, &suggest::rebind(&after, &connection), &options);
            prop_assert_eq!(now.result, VerdictResult::Allowed);

            for other in &queries {
                let flow = world.connection(&index, other);
                let pair = OpenedPair { from: name(flow.source), to: name(flow.destination) };
                for direction in [Direction::Egress, Direction::Ingress] {
                    let (was, is) = (allows(&index, &flow, direction), allows(&after, &flow, direction));
                    prop_assert!(is || !was, "{direction} of {other:?} is closed by {changes:?}");
                    let same = (name(connection.source), name(connection.destination)) == (pair.from.clone(), pair.to.clone())
                        && (flow.transport, flow.port) == (connection.transport, connection.port);
                    let of_direction = || changes.iter().filter(|change| change.direction == direction);
                    let listed = same || of_direction().any(|change| change.side_effects.opened.contains(&pair));
                    prop_assert!(was || !is || listed, "{direction} of {other:?} is opened by {changes:?}");
                }
            }
            // The printed manifest is the policy that was evaluated.
            for change in &changes {
                // Random policies hold what the API refuses (port 0, a block's exception outside of it).
                let original = index.policy(&change.policy.namespace, &change.policy.name);
                if original.is_some_and(|p| load_bytes("original.yaml", suggest::yaml(p).as_bytes()).error().is_some()) {
                    continue;
                }
                let loaded = load_bytes("suggestion.yaml", suggest::yaml(&change.policy).as_bytes());
                prop_assert!(loaded.error().is_none(), "{:?}\n{}", loaded.problems, suggest::yaml(&change.policy));
                let mut printed = index.clone();
                printed.upsert(loaded.objects[0].object.clone());
                prop_assert!(allows(&printed, &connection, change.direction), "{}", suggest::yaml(&change.policy));
            }
        }
    }
}

#[test]
fn every_suggestion_opens_its_connection_and_what_it_lists() {
    suggestions_open_what_they_say();
    // The property must not hold only because there are no suggestions.
    assert!(SUGGESTED.load(Ordering::Relaxed) > 100, "only {SUGGESTED:?} suggestions were made");
}
