//! The smallest NetworkPolicy change that lets a denied connection through. Pure.
//!
//! A change is one added rule: in a policy that selects just these pods and has rules of its own, else in a new policy.
//! Rules that are there are never touched, since every one of them may be needed by other connections too. Nothing is isolated that
//! was not before.

mod labels;
mod manifest;
mod side_effects;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
pub(super) use labels::is_stable;
pub use labels::stable;
pub use manifest::{json, yaml};
pub use side_effects::{OpenedPair, SideEffects};

use crate::cluster::Index;
use crate::cluster::Object;
use crate::cluster::index::PodView;
use crate::model::Str;
use crate::model::cluster::{Direction, Peer, Policy, PortMatch, PortSpec, Rule, Selector};
use crate::policy;
use crate::policy::{CniOptions, Connection, PolicyEndpoint, PolicyIdentity, PolicyResult, Transport};

/// One policy to apply.
#[derive(Debug, Clone, PartialEq)]
pub struct SuggestedChange {
    /// The whole object after the change.
    pub policy: Policy,
    /// The policy does not exist yet.
    pub created: bool,
    pub direction: Direction,
    /// The added rule is `ingress[rule]` or `egress[rule]`.
    pub rule: usize,
    /// What else the rule lets through in this direction.
    pub side_effects: SideEffects,
}

/// Why there is nothing to suggest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSuggestion {
    #[error("the policies allow it already")]
    Allowed,
    #[error("{0}")]
    NotExpressible(String),
    #[error("no rule that NetworkPolicy v1 can express lets it through: {0}")]
    StillNot(String),
}

/// The changes that let `connection` through, at most one for each direction.
pub fn suggest(
    index: &Index,
    connection: &Connection<'_>,
    options: &CniOptions,
) -> Result<Vec<SuggestedChange>, NoSuggestion> {
    let evaluation = policy::evaluate(index, connection, options);
    let denied: Vec<Direction> = [Direction::Egress, Direction::Ingress]
        .into_iter()
        .filter(|direction| matches!(evaluation.side(*direction).result, PolicyResult::Denied))
        .collect();
    if denied.is_empty() {
        let verdict = policy::verdict_of(index, connection, options);
        let why = [&verdict.egress, &verdict.ingress].into_iter().find_map(|side| side.why.clone());
        return Err(match why {
            None => NoSuggestion::Allowed,
            Some(why) => NoSuggestion::NotExpressible(why),
        });
    }
    let port = port_of(connection)?;
    let changes: Vec<SuggestedChange> = denied
        .into_iter()
        .map(|direction| change(index, connection, options, direction, &port))
        .collect::<Result<_, _>>()?;
    verify(index, connection, options, &changes)?;
    Ok(changes)
}

fn port_of(connection: &Connection<'_>) -> Result<PortMatch, NoSuggestion> {
    let Transport::Named(protocol) = connection.transport else {
        return Err(NoSuggestion::NotExpressible("NetworkPolicy v1 can name TCP, UDP and SCTP only".into()));
    };
    // Packets may have port 0; the API does not accept it.
    let port = connection
        .port
        .filter(|port| *port != 0)
        .ok_or_else(|| NoSuggestion::NotExpressible("the destination has no port that a policy could name".into()))?;
    Ok(PortMatch { protocol, protocol_defaulted: false, port: PortSpec::Range(port, port) })
}

/// Applies the changes to a copy of the index and evaluates the connection again.
fn verify(
    index: &Index,
    connection: &Connection<'_>,
    options: &CniOptions,
    changes: &[SuggestedChange],
) -> Result<(), NoSuggestion> {
    let mut changed = index.clone();
    for change in changes {
        changed.upsert(Object::Policy(change.policy.clone()));
    }
    let rebound = rebind(&changed, connection);
    let verdict = policy::verdict_of(&changed, &rebound, options);
    if verdict.result == crate::model::VerdictResult::Allowed {
        return Ok(());
    }
    let why = [verdict.egress.why, verdict.ingress.why].into_iter().flatten().next();
    Err(NoSuggestion::StillNot(why.unwrap_or_else(|| "no selector or address singles out its endpoints".into())))
}

/// Returns the connection with its pods looked up in another index.
pub fn rebind<'a>(index: &'a Index, connection: &Connection<'a>) -> Connection<'a> {
    let endpoint = |endpoint: PolicyEndpoint<'a>| match endpoint.identity {
        PolicyIdentity::Pod(view) => match index.pod(&view.pod.namespace, &view.pod.name) {
            Some(view) => PolicyEndpoint { identity: PolicyIdentity::Pod(view), ..endpoint },
            None => endpoint,
        },
        _ => endpoint,
    };
    Connection { source: endpoint(connection.source), destination: endpoint(connection.destination), ..*connection }
}

/// The change of one direction.
fn change(
    index: &Index,
    connection: &Connection<'_>,
    options: &CniOptions,
    direction: Direction,
    port: &PortMatch,
) -> Result<SuggestedChange, NoSuggestion> {
    let (subject, peer) = match direction {
        Direction::Egress => (connection.source, connection.destination),
        Direction::Ingress => (connection.destination, connection.source),
    };
    let PolicyIdentity::Pod(pod) = subject.identity else {
        return Err(NoSuggestion::NotExpressible("only pods are subject to policy".into()));
    };
    let rule = Rule { peers: Some([peer_of(index, pod, peer, options)?].into()), ports: Some([port.clone()].into()) };
    let own_labels = labels::selector(pod.pod);
    let workload: Vec<PodView<'_>> =
        pod.namespace.pods().filter(|other| own_labels.matches(&other.pod.labels)).collect();
    let selects_the_workload = |policy: &Policy| {
        let selected = |view: &PodView<'_>| policy.subject.matches(&view.pod.labels);
        pod.namespace.pods().filter(selected).count() == workload.len() && workload.iter().all(selected)
    };
    let isolating = pod.isolated_by(direction);
    let nearest = policy::verdict_of(index, connection, options);
    let nearest = match direction {
        Direction::Egress => nearest.egress.nearest,
        Direction::Ingress => nearest.ingress.nearest,
    };
    let is_nearest =
        |policy: &Policy| nearest.as_ref().is_some_and(|n| n.policy == format!("{}/{}", policy.namespace, policy.name));
    // A policy for exactly these pods, with rules of its own.
    let mut for_workload: Vec<&Arc<Policy>> =
        isolating.iter().filter(|p| !p.rules(direction).is_empty() && selects_the_workload(p)).collect();
    for_workload.sort_by_key(|policy| !is_nearest(policy));
    let may_be_new = !own_labels.is_everything() && workload.iter().all(|view| !view.isolated_by(direction).is_empty());
    let policy = match for_workload.first() {
        Some(policy) => with_rule(policy, direction, rule.clone()),
        None if may_be_new => new_policy(index, pod, peer, direction, own_labels, rule.clone()),
        // A new policy would isolate pods that are open now; the narrowest of those that isolate already does not.
        None => {
            let width = |policy: &&Arc<Policy>| {
                pod.namespace.pods().filter(|view| policy.subject.matches(&view.pod.labels)).count()
            };
            let narrowest = isolating.iter().min_by_key(width).ok_or(NoSuggestion::Allowed)?;
            with_rule(narrowest, direction, rule.clone())
        }
    };
    let created = index.policy(&policy.namespace, &policy.name).is_none();
    let side_effects = side_effects::of(index, connection, options, direction, &policy, &rule);
    Ok(SuggestedChange { rule: policy.rules(direction).len() - 1, policy, created, direction, side_effects })
}

fn with_rule(policy: &Policy, direction: Direction, rule: Rule) -> Policy {
    let mut policy = policy.clone();
    let rules = match direction {
        Direction::Ingress => &mut policy.ingress,
        Direction::Egress => &mut policy.egress,
    };
    *rules = rules.iter().cloned().chain([rule]).collect();
    policy
}

fn new_policy(
    index: &Index,
    pod: PodView<'_>,
    peer: PolicyEndpoint<'_>,
    direction: Direction,
    subject: Selector,
    rule: Rule,
) -> Policy {
    let (own, other) = (workload_name(pod), endpoint_name(peer));
    let name = match direction {
        Direction::Ingress => labels::object_name(&format!("{own}-from-{other}")),
        Direction::Egress => labels::object_name(&format!("{own}-to-{other}")),
    };
    let free = |name: &str| index.policy(&pod.pod.namespace, name).is_none();
    let name = std::iter::once(name.clone())
        .chain((2..).map(|n| labels::object_name(&format!("{}-{n}", &name[..name.len().min(240)]))))
        .find(|name| free(name))
        .unwrap_or(name);
    let (ingress, egress): (Box<[Rule]>, Box<[Rule]>) = match direction {
        Direction::Ingress => ([rule].into(), [].into()),
        Direction::Egress => ([].into(), [rule].into()),
    };
    Policy {
        namespace: pod.pod.namespace.clone(),
        name: name.into(),
        uid: None,
        labels: Default::default(),
        annotations: Default::default(),
        generation: None,
        changed: None,
        subject,
        declared_types: Some([direction].into()),
        ingress,
        egress,
    }
}

fn workload_name(view: PodView<'_>) -> Str {
    view.pod.owner.as_ref().map_or_else(|| view.pod.name.clone(), |owner| owner.name.clone())
}

fn endpoint_name(endpoint: PolicyEndpoint<'_>) -> String {
    match (endpoint.identity, endpoint.ip) {
        (PolicyIdentity::Pod(view), _) => workload_name(view).to_string(),
        (PolicyIdentity::Node(name), _) => name.to_owned(),
        (_, Some(ip)) => ip.to_string(),
        (_, None) => "unknown".to_owned(),
    }
}

/// The narrowest peer that matches: a workload by its stable labels, all else by address.
fn peer_of(
    index: &Index,
    subject: PodView<'_>,
    peer: PolicyEndpoint<'_>,
    options: &CniOptions,
) -> Result<Peer, NoSuggestion> {
    let unknown = || NoSuggestion::NotExpressible("the address of the other endpoint is not known".into());
    match peer.identity {
        PolicyIdentity::Pod(view) if !view.pod.host_network => {
            let pods = labels::selector(view.pod);
            // Without labels every pod of the namespace would be let in; the address alone is narrower.
            if pods.is_everything()
                && options.ipblock_matches_pods == Some(true)
                && let Some(ip) = peer.ip.or_else(|| view.pod.ips.first().copied())
            {
                return Ok(block(ip));
            }
            let elsewhere = view.pod.namespace != subject.pod.namespace;
            let namespaces = elsewhere.then(|| labels::namespace_selector(&view.pod.namespace));
            Ok(Peer::Pods { namespaces, pods: Some(pods) })
        }
        PolicyIdentity::Pod(view) => view.pod.ips.first().copied().or(peer.ip).map(block).ok_or_else(unknown),
        PolicyIdentity::Node(name) => {
            peer.ip.or_else(|| index.node(name)?.ips.first().copied()).map(block).ok_or_else(unknown)
        }
        PolicyIdentity::External | PolicyIdentity::Unknown => peer.ip.map(block).ok_or_else(unknown),
    }
}

fn block(ip: IpAddr) -> Peer {
    Peer::Block { cidr: IpNet::from(ip), except: Box::default() }
}
