//! Evaluates both directions of a connection, with borrowed evidence and without allocation.

use std::sync::Arc;

use crate::cluster::Index;
use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, Policy};
use crate::policy::matching::{Assumptions, Match, Matcher, UndeterminedReason};
use crate::policy::{CniOptions, Connection, PolicyEndpoint, PolicyIdentity, Transport};

/// The result of both directions.
#[derive(Debug, Clone, Copy)]
pub struct PolicyEvaluation<'a> {
    pub egress: SideEvaluation<'a>,
    pub ingress: SideEvaluation<'a>,
}

impl<'a> PolicyEvaluation<'a> {
    /// Denied when one side denies; else undetermined when one side is; else allowed.
    pub fn result(&self) -> PolicyResult<'a> {
        match (self.egress.result, self.ingress.result) {
            (PolicyResult::Denied, _) | (_, PolicyResult::Denied) => PolicyResult::Denied,
            (PolicyResult::Undetermined(reason), _) | (_, PolicyResult::Undetermined(reason)) => {
                PolicyResult::Undetermined(reason)
            }
            (allowed @ PolicyResult::Allowed(_), PolicyResult::Allowed(_)) => allowed,
        }
    }

    /// Whether egress denies, and whether ingress does.
    pub fn denied(&self) -> [bool; 2] {
        [&self.egress, &self.ingress].map(|side| matches!(side.result, PolicyResult::Denied))
    }

    pub fn side(&self, direction: Direction) -> &SideEvaluation<'a> {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

/// Egress of the source, or ingress of the destination.
#[derive(Debug, Clone, Copy)]
pub struct SideEvaluation<'a> {
    pub result: PolicyResult<'a>,
    /// Every policy that isolates the pod in this direction.
    pub isolated_by: IsolatingPolicies<'a>,
    /// The CNI-dependent points that the result rests on.
    pub assumed: Assumptions,
}

#[derive(Debug, Clone, Copy)]
pub enum PolicyResult<'a> {
    Allowed(AllowedBy<'a>),
    Denied,
    Undetermined(UndeterminedReason),
}

#[derive(Debug, Clone, Copy)]
pub enum AllowedBy<'a> {
    /// External addresses and nodes are not subject to policy.
    NotAPod,
    NotIsolated,
    /// A pod may always reach itself.
    Itself,
    /// A pod and the node that it runs on.
    OwnNode,
    /// A protocol that policies can't name, on a CNI that lets it pass.
    OtherProtocol,
    Rule {
        policy: &'a Arc<Policy>,
        rule: usize,
    },
}

/// The policies that isolate a pod.
#[derive(Debug, Clone, Copy)]
pub enum IsolatingPolicies<'a> {
    None,
    Listed(&'a [Arc<Policy>]),
    /// A hostNetwork pod has no list of its own: the CNI decides whether policy applies to it.
    HostNetwork(PodView<'a>, Direction),
}

impl<'a> IsolatingPolicies<'a> {
    pub fn iter(&self) -> impl Iterator<Item = &'a Arc<Policy>> + use<'a> {
        let (listed, host_network): (&'a [Arc<Policy>], _) = match *self {
            IsolatingPolicies::None => (&[], None),
            IsolatingPolicies::Listed(list) => (list, None),
            IsolatingPolicies::HostNetwork(view, direction) => (&[], Some((view, direction))),
        };
        let of_host_network = host_network.into_iter().flat_map(|(view, direction)| {
            let selects = move |p: &&Arc<Policy>| p.isolates(direction) && p.subject.matches(&view.pod.labels);
            view.namespace.policies().filter(selects)
        });
        listed.iter().chain(of_host_network)
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// Evaluates `connection` in both directions.
pub fn evaluate<'a>(index: &Index, connection: &Connection<'a>, options: &CniOptions) -> PolicyEvaluation<'a> {
    let egress = Matcher::new(index, connection, options, Direction::Egress);
    let ingress = Matcher { direction: Direction::Ingress, ..egress };
    PolicyEvaluation { egress: one_side(&egress), ingress: one_side(&ingress) }
}

fn one_side<'a>(matcher: &Matcher<'_, 'a>) -> SideEvaluation<'a> {
    let connection = &matcher.connection;
    let (subject, peer) = match matcher.direction {
        Direction::Egress => (&connection.source, &connection.destination),
        Direction::Ingress => (&connection.destination, &connection.source),
    };
    let view = match subject.identity {
        PolicyIdentity::Pod(view) => view,
        PolicyIdentity::Unknown => {
            return SideEvaluation::without_policies(PolicyResult::Undetermined(UndeterminedReason::UnknownEndpoint));
        }
        PolicyIdentity::External if matcher.to_service && matcher.direction == Direction::Ingress => {
            return SideEvaluation::without_policies(PolicyResult::Undetermined(UndeterminedReason::ServiceAddress));
        }
        PolicyIdentity::Node(_) | PolicyIdentity::External => {
            return SideEvaluation::without_policies(PolicyResult::Allowed(AllowedBy::NotAPod));
        }
    };
    if view.pod.host_network {
        return host_network_side(matcher, view);
    }
    let isolated_by = IsolatingPolicies::Listed(view.isolated_by(matcher.direction));
    let (result, assumed) = subject_side(matcher, view, peer, isolated_by);
    SideEvaluation { result, isolated_by, assumed }
}

fn subject_side<'a>(
    matcher: &Matcher<'_, 'a>,
    view: PodView<'a>,
    peer: &PolicyEndpoint<'a>,
    isolated_by: IsolatingPolicies<'a>,
) -> (PolicyResult<'a>, Assumptions) {
    if isolated_by.is_empty() {
        return (PolicyResult::Allowed(AllowedBy::NotIsolated), Assumptions::NOTHING);
    }
    if is_itself(view, peer) {
        return (PolicyResult::Allowed(AllowedBy::Itself), Assumptions::NOTHING);
    }
    let own_node = is_own_node(view, peer);
    if own_node && matcher.options.own_node_allowed == Some(true) {
        return (PolicyResult::Allowed(AllowedBy::OwnNode), Assumptions::OWN_NODE);
    }
    let (result, mut assumed) = by_rules(matcher, isolated_by);
    if matches!(result, PolicyResult::Allowed(_)) {
        return (result, assumed);
    }
    if own_node {
        match matcher.options.own_node_allowed {
            None => return (PolicyResult::Undetermined(UndeterminedReason::OwnNode), Assumptions::NOTHING),
            Some(_) => assumed = assumed.and(Assumptions::OWN_NODE),
        }
    }
    // Some CNIs treat a hostNetwork peer on the pod's own node as that node, whose traffic always passes.
    if let PolicyIdentity::Pod(other) = peer.identity
        && other.pod.host_network
        && other.pod.node.is_some()
        && other.pod.node == view.pod.node
        && matcher.options.own_node_allowed != Some(false)
    {
        match matcher.options.host_network_is_pod {
            None => return (PolicyResult::Undetermined(UndeterminedReason::HostNetwork), Assumptions::NOTHING),
            Some(true) => assumed = assumed.and(Assumptions::HOST_NETWORK),
            Some(false) if matcher.options.own_node_allowed == Some(true) => {
                return (
                    PolicyResult::Allowed(AllowedBy::OwnNode),
                    Assumptions::OWN_NODE.and(Assumptions::HOST_NETWORK),
                );
            }
            Some(false) => return (PolicyResult::Undetermined(UndeterminedReason::OwnNode), Assumptions::NOTHING),
        }
    }
    (result, assumed)
}

/// Kubernetes leaves open whether policy applies to a hostNetwork pod. Where the rules allow, both readings agree.
fn host_network_side<'a>(matcher: &Matcher<'_, 'a>, view: PodView<'a>) -> SideEvaluation<'a> {
    let isolated_by = IsolatingPolicies::HostNetwork(view, matcher.direction);
    let finished = |result, assumed| SideEvaluation { result, isolated_by, assumed };
    if isolated_by.is_empty() {
        return SideEvaluation::without_policies(PolicyResult::Allowed(AllowedBy::NotIsolated));
    }
    match matcher.options.host_network_is_pod {
        Some(false) => {
            let mut side = SideEvaluation::without_policies(PolicyResult::Allowed(AllowedBy::NotAPod));
            side.assumed = Assumptions::HOST_NETWORK;
            side
        }
        is_pod => {
            let (result, assumed) = subject_side(matcher, view, matcher.peer(), isolated_by);
            match (result, is_pod) {
                (PolicyResult::Allowed(_), None) => finished(result, assumed),
                (_, None) => {
                    finished(PolicyResult::Undetermined(UndeterminedReason::HostNetwork), Assumptions::NOTHING)
                }
                (_, Some(_)) => finished(result, assumed.and(Assumptions::HOST_NETWORK)),
            }
        }
    }
}

/// The union of all rules of all isolating policies: order does not matter, one match allows.
fn by_rules<'a>(matcher: &Matcher<'_, 'a>, isolated_by: IsolatingPolicies<'a>) -> (PolicyResult<'a>, Assumptions) {
    let mut always = Assumptions::NOTHING;
    match (matcher.connection.transport, matcher.options.other_protocols_pass) {
        (Transport::Named(_), _) => {}
        (Transport::Icmp, None) => return (PolicyResult::Undetermined(UndeterminedReason::Icmp), always),
        (Transport::Other(_), None) => return (PolicyResult::Undetermined(UndeterminedReason::Protocol), always),
        (_, Some(true)) => return (PolicyResult::Allowed(AllowedBy::OtherProtocol), Assumptions::OTHER_PROTOCOL),
        (_, Some(false)) => always = Assumptions::OTHER_PROTOCOL,
    }
    // The assumptions on which rules did not match: they count only when none matches.
    let mut against = always;
    let mut on_assumption = None;
    let mut reason = None;
    for policy in isolated_by.iter() {
        for (rule, content) in policy.rules(matcher.direction).iter().enumerate() {
            match matcher.rule(policy, content) {
                Match::Yes(a) if a.is_nothing() => {
                    return (PolicyResult::Allowed(AllowedBy::Rule { policy, rule }), always);
                }
                // A later rule may match without an assumption.
                Match::Yes(a) => _ = on_assumption.get_or_insert((policy, rule, a)),
                Match::Maybe(d) => _ = reason.get_or_insert(d),
                Match::No(a) => against = against.and(a),
            }
        }
    }
    match (on_assumption, reason) {
        (Some((policy, rule, a)), _) => (PolicyResult::Allowed(AllowedBy::Rule { policy, rule }), a.and(always)),
        (None, Some(reason)) => (PolicyResult::Undetermined(reason), Assumptions::NOTHING),
        (None, None) => (PolicyResult::Denied, against),
    }
}

impl<'a> SideEvaluation<'a> {
    fn without_policies(result: PolicyResult<'a>) -> SideEvaluation<'a> {
        SideEvaluation { result, isolated_by: IsolatingPolicies::None, assumed: Assumptions::NOTHING }
    }
}

/// Whether the peer is the pod itself. A pod template stands for many pods, so it never is.
pub(super) fn is_itself(view: PodView<'_>, peer: &PolicyEndpoint<'_>) -> bool {
    matches!(peer.identity, PolicyIdentity::Pod(other) if Arc::ptr_eq(other.pod, view.pod) && !view.pod.template)
}

fn is_own_node(view: PodView<'_>, peer: &PolicyEndpoint<'_>) -> bool {
    matches!(peer.identity, PolicyIdentity::Node(name) if view.pod.node.as_deref() == Some(name))
}
