//! Which other connections an added rule allows.

use crate::cluster::Index;
use crate::cluster::Object;
use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, Peer, Policy, Rule};
use crate::policy;
use crate::policy::{CniOptions, Connection, PolicyEndpoint, PolicyIdentity, PolicyResult};

/// Pairs that are compared; the rest is only counted.
const MAX_PAIRS: usize = 100_000;

/// Other connections that the rule allows in its direction; the other direction may still deny them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SideEffects {
    /// Pairs that were denied in this direction and no longer are.
    pub opened: Vec<OpenedPair>,
    /// Pairs beyond [`MAX_PAIRS`], which were not compared.
    pub not_looked_at: usize,
}

/// Source and destination, each as `namespace/pod` or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct OpenedPair {
    pub from: String,
    pub to: String,
}

/// Compares all pods that `policy` selects with all endpoints that `rule` matches, before and after the change.
pub(super) fn of(
    index: &Index,
    connection: &Connection<'_>,
    options: &CniOptions,
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

/// The endpoints that the rule's peers match.
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
    let mut endpoints = vec![own];
    for peer in rule.peers.iter().flatten() {
        match peer {
            Peer::Block { cidr, .. } => {
                // The address itself, for what is no pod.
                endpoints.push(PolicyEndpoint::external(cidr.addr()));
                let inside = |view: &PodView<'_>| view.pod.ips.iter().any(|ip| cidr.contains(ip));
                endpoints
                    .extend(index.namespaces().flat_map(|(_, n)| n.pods()).filter(inside).map(PolicyEndpoint::pod));
            }
            Peer::Pods { namespaces, pods } => {
                let of_namespace = |name: &str, entry: &crate::cluster::index::NamespaceEntry| match namespaces {
                    None => *name == *policy.namespace,
                    Some(selector) => entry.labels().is_some_and(|labels| selector.matches(labels)),
                };
                let chosen = |view: &PodView<'_>| pods.as_ref().is_none_or(|s| s.matches(&view.pod.labels));
                let spaces = index.namespaces().filter(|(name, entry)| of_namespace(name, entry));
                endpoints.extend(spaces.flat_map(|(_, entry)| entry.pods()).filter(chosen).map(PolicyEndpoint::pod));
            }
        }
    }
    endpoints
}

pub(super) fn name(endpoint: PolicyEndpoint<'_>) -> String {
    match (endpoint.identity, endpoint.ip) {
        (PolicyIdentity::Pod(view), _) => format!("{}/{}", view.pod.namespace, view.pod.name),
        (_, Some(ip)) => ip.to_string(),
        (PolicyIdentity::Node(name), None) => name.to_owned(),
        (_, None) => "unknown".to_owned(),
    }
}
