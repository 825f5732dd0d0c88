//! What an added rule lets through besides the connection that it is for.

use crate::cluster::Index;
use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, Object, Peer, Policy, Rule};
use crate::policy;
use crate::policy::{Connection, Options, PolicyEndpoint, PolicyIdentity, PolicyResult};

/// Pairs that are looked at; the rest is counted.
const MAX_PAIRS: usize = 100_000;

/// What else passes in the rule's direction; the other direction may still deny it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SideEffects {
    /// Pairs that were denied in this direction and no longer are.
    pub opened: Vec<OpenedPair>,
    /// Pairs that were too many to look at.
    pub not_looked_at: usize,
}

/// By name: `namespace/pod`, or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct OpenedPair {
    pub from: String,
    pub to: String,
}

/// Compares all pods that `policy` selects with all ends that `rule` names, before and after.
pub(super) fn of(
    index: &Index,
    connection: &Connection<'_>,
    options: &Options,
    direction: Direction,
    policy: &Policy,
    rule: &Rule,
) -> SideEffects {
    let mut after = index.clone();
    after.upsert(Object::Policy(policy.clone()));
    let subjects: Vec<PodView<'_>> = index
        .namespace(&policy.namespace)
        .into_iter()
        .flat_map(|namespace| namespace.pods())
        .filter(|view| policy.subject.matches(&view.pod.labels))
        .collect();
    let peers = peers(index, connection, direction, policy, rule);
    let mut side_effects =
        SideEffects { opened: Vec::new(), not_looked_at: (subjects.len() * peers.len()).saturating_sub(MAX_PAIRS) };
    let pairs = subjects.iter().flat_map(|subject| peers.iter().map(move |peer| (*subject, *peer)));
    for (subject, peer) in pairs.take(MAX_PAIRS) {
        let subject = PolicyEndpoint::pod(subject);
        let (source, destination) = match direction {
            Direction::Egress => (subject, peer),
            Direction::Ingress => (peer, subject),
        };
        let pair = Connection { source, destination, ..*connection };
        if (name(source), name(destination)) == (name(connection.source), name(connection.destination)) {
            continue;
        }
        let denied = |index: &Index, pair: &Connection<'_>| {
            matches!(policy::evaluate(index, pair, options).side(direction).result, PolicyResult::Denied)
        };
        if denied(index, &pair) && !denied(&after, &crate::policy::suggest::rebind(&after, &pair)) {
            side_effects.opened.push(OpenedPair { from: name(source), to: name(destination) });
        }
    }
    side_effects.opened.sort();
    side_effects.opened.dedup();
    side_effects
}

/// The ends that the rule's peers name.
fn peers<'a>(
    index: &'a Index,
    connection: &Connection<'a>,
    direction: Direction,
    policy: &Policy,
    rule: &Rule,
) -> Vec<PolicyEndpoint<'a>> {
    let own = match direction {
        Direction::Egress => connection.destination,
        Direction::Ingress => connection.source,
    };
    let mut ends = vec![own];
    for peer in rule.peers.iter().flatten() {
        match peer {
            Peer::Block { cidr, .. } => {
                // Whoever else is behind the address.
                ends.push(PolicyEndpoint::external(cidr.addr()));
                let inside = |view: &PodView<'_>| view.pod.ips.iter().any(|ip| cidr.contains(ip));
                ends.extend(index.namespaces().flat_map(|(_, n)| n.pods()).filter(inside).map(PolicyEndpoint::pod));
            }
            Peer::Pods { namespaces, pods } => {
                let of_namespace = |name: &str, entry: &crate::cluster::index::NamespaceEntry| match namespaces {
                    None => *name == *policy.namespace,
                    Some(selector) => entry.labels().is_some_and(|labels| selector.matches(labels)),
                };
                let chosen = |view: &PodView<'_>| pods.as_ref().is_none_or(|s| s.matches(&view.pod.labels));
                let spaces = index.namespaces().filter(|(name, entry)| of_namespace(name, entry));
                ends.extend(spaces.flat_map(|(_, entry)| entry.pods()).filter(chosen).map(PolicyEndpoint::pod));
            }
        }
    }
    ends
}

pub(super) fn name(end: PolicyEndpoint<'_>) -> String {
    match (end.identity, end.ip) {
        (PolicyIdentity::Pod(view), _) => format!("{}/{}", view.pod.namespace, view.pod.name),
        (_, Some(ip)) => ip.to_string(),
        (PolicyIdentity::Node(name), None) => name.to_owned(),
        (_, None) => "unknown".to_owned(),
    }
}
