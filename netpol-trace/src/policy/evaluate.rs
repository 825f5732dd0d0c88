//! The fast core: both directions of a connection, with borrowed evidence and without allocation.

use std::sync::Arc;

use crate::cluster::Index;
use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, Policy};
use crate::policy::matching::{Assumed, Doubt, Match, Matcher};
use crate::policy::{Connection, PolicyEndpoint, Options, Transport, PolicyIdentity};

/// What NetworkPolicy v1 says of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Judgement<'a> {
    pub egress: Side<'a>,
    pub ingress: Side<'a>,
}

impl<'a> Judgement<'a> {
    /// Denied when one side denies; else undetermined when one side is; else allowed.
    pub fn finding(&self) -> Finding<'a> {
        match (self.egress.finding, self.ingress.finding) {
            (Finding::Denied, _) | (_, Finding::Denied) => Finding::Denied,
            (Finding::Undetermined(doubt), _) | (_, Finding::Undetermined(doubt)) => Finding::Undetermined(doubt),
            (allowed @ Finding::Allowed(_), Finding::Allowed(_)) => allowed,
        }
    }

    /// Whether egress denies, and whether ingress does.
    pub fn denied(&self) -> [bool; 2] {
        [&self.egress, &self.ingress].map(|side| matches!(side.finding, Finding::Denied))
    }

    pub fn side(&self, direction: Direction) -> &Side<'a> {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

/// Egress of the source, or ingress of the destination.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    pub finding: Finding<'a>,
    /// Every policy that isolates the pod in this direction.
    pub isolated_by: Policies<'a>,
    /// The CNI-dependent points that the finding rests on.
    pub assumed: Assumed,
}

#[derive(Debug, Clone, Copy)]
pub enum Finding<'a> {
    Allowed(Because<'a>),
    Denied,
    Undetermined(Doubt),
}

#[derive(Debug, Clone, Copy)]
pub enum Because<'a> {
    /// External ends and nodes are not subject to policy.
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
pub enum Policies<'a> {
    None,
    Listed(&'a [Arc<Policy>]),
    /// A hostNetwork pod has no list of its own: whether policy applies to it is the CNI's choice.
    HostNetwork(PodView<'a>, Direction),
}

impl<'a> Policies<'a> {
    pub fn iter(&self) -> impl Iterator<Item = &'a Arc<Policy>> + use<'a> {
        let (listed, host_network): (&'a [Arc<Policy>], _) = match *self {
            Policies::None => (&[], None),
            Policies::Listed(list) => (list, None),
            Policies::HostNetwork(view, direction) => (&[], Some((view, direction))),
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

/// Judges `connection` in both directions.
pub fn evaluate<'a>(index: &Index, connection: &Connection<'a>, options: &Options) -> Judgement<'a> {
    let egress = Matcher::new(index, connection, options, Direction::Egress);
    let ingress = Matcher { direction: Direction::Ingress, ..egress };
    Judgement { egress: one_side(&egress), ingress: one_side(&ingress) }
}

fn one_side<'a>(matcher: &Matcher<'_, 'a>) -> Side<'a> {
    let connection = &matcher.connection;
    let (subject, peer) = match matcher.direction {
        Direction::Egress => (&connection.source, &connection.destination),
        Direction::Ingress => (&connection.destination, &connection.source),
    };
    let view = match subject.identity {
        PolicyIdentity::Pod(view) => view,
        PolicyIdentity::Unknown => return Side::without_policies(Finding::Undetermined(Doubt::UnknownEnd)),
        PolicyIdentity::External if matcher.to_service && matcher.direction == Direction::Ingress => {
            return Side::without_policies(Finding::Undetermined(Doubt::ServiceAddress));
        }
        PolicyIdentity::Node(_) | PolicyIdentity::External => return Side::without_policies(Finding::Allowed(Because::NotAPod)),
    };
    if view.pod.host_network {
        return host_network_side(matcher, view);
    }
    let isolated_by = Policies::Listed(view.isolated_by(matcher.direction));
    let (finding, assumed) = subject_side(matcher, view, peer, isolated_by);
    Side { finding, isolated_by, assumed }
}

fn subject_side<'a>(
    matcher: &Matcher<'_, 'a>,
    view: PodView<'a>,
    peer: &PolicyEndpoint<'a>,
    isolated_by: Policies<'a>,
) -> (Finding<'a>, Assumed) {
    if isolated_by.is_empty() {
        return (Finding::Allowed(Because::NotIsolated), Assumed::NOTHING);
    }
    if is_itself(view, peer) {
        return (Finding::Allowed(Because::Itself), Assumed::NOTHING);
    }
    let own_node = is_own_node(view, peer);
    if own_node && matcher.options.own_node_allowed == Some(true) {
        return (Finding::Allowed(Because::OwnNode), Assumed::OWN_NODE);
    }
    let (finding, mut assumed) = by_rules(matcher, isolated_by);
    if matches!(finding, Finding::Allowed(_)) {
        return (finding, assumed);
    }
    if own_node {
        match matcher.options.own_node_allowed {
            None => return (Finding::Undetermined(Doubt::OwnNode), Assumed::NOTHING),
            Some(_) => assumed = assumed.and(Assumed::OWN_NODE),
        }
    }
    // A hostNetwork peer on the pod's own node may be taken for that node, whose traffic always passes.
    if let PolicyIdentity::Pod(other) = peer.identity
        && other.pod.host_network
        && other.pod.node.is_some()
        && other.pod.node == view.pod.node
        && matcher.options.own_node_allowed != Some(false)
    {
        match matcher.options.host_network_is_pod {
            None => return (Finding::Undetermined(Doubt::HostNetwork), Assumed::NOTHING),
            Some(true) => assumed = assumed.and(Assumed::HOST_NETWORK),
            Some(false) if matcher.options.own_node_allowed == Some(true) => {
                return (Finding::Allowed(Because::OwnNode), Assumed::OWN_NODE.and(Assumed::HOST_NETWORK));
            }
            Some(false) => return (Finding::Undetermined(Doubt::OwnNode), Assumed::NOTHING),
        }
    }
    (finding, assumed)
}

/// Whether policy applies to a hostNetwork pod is open: where both readings agree, the answer is not.
fn host_network_side<'a>(matcher: &Matcher<'_, 'a>, view: PodView<'a>) -> Side<'a> {
    let isolated_by = Policies::HostNetwork(view, matcher.direction);
    let finished = |finding, assumed| Side { finding, isolated_by, assumed };
    if isolated_by.is_empty() {
        return Side::without_policies(Finding::Allowed(Because::NotIsolated));
    }
    match matcher.options.host_network_is_pod {
        Some(false) => {
            let mut side = Side::without_policies(Finding::Allowed(Because::NotAPod));
            side.assumed = Assumed::HOST_NETWORK;
            side
        }
        is_pod => {
            let (finding, assumed) = subject_side(matcher, view, matcher.peer(), isolated_by);
            match (finding, is_pod) {
                (Finding::Allowed(_), None) => finished(finding, assumed),
                (_, None) => finished(Finding::Undetermined(Doubt::HostNetwork), Assumed::NOTHING),
                (_, Some(_)) => finished(finding, assumed.and(Assumed::HOST_NETWORK)),
            }
        }
    }
}

/// The union of all rules of all isolating policies: order does not matter, one match allows.
fn by_rules<'a>(matcher: &Matcher<'_, 'a>, isolated_by: Policies<'a>) -> (Finding<'a>, Assumed) {
    let mut always = Assumed::NOTHING;
    match (matcher.connection.transport, matcher.options.other_protocols_pass) {
        (Transport::Named(_), _) => {}
        (Transport::Icmp, None) => return (Finding::Undetermined(Doubt::Icmp), always),
        (Transport::Other(_), None) => return (Finding::Undetermined(Doubt::Protocol), always),
        (_, Some(true)) => return (Finding::Allowed(Because::OtherProtocol), Assumed::OTHER_PROTOCOL),
        (_, Some(false)) => always = Assumed::OTHER_PROTOCOL,
    }
    // What kept rules from matching: it counts only when none did.
    let mut against = always;
    let mut on_assumption = None;
    let mut doubt = None;
    for policy in isolated_by.iter() {
        for (rule, content) in policy.rules(matcher.direction).iter().enumerate() {
            match matcher.rule(policy, content) {
                Match::Yes(a) if a.is_nothing() => {
                    return (Finding::Allowed(Because::Rule { policy, rule }), always);
                }
                // A later rule may allow it on no assumption.
                Match::Yes(a) => _ = on_assumption.get_or_insert((policy, rule, a)),
                Match::Maybe(d) => _ = doubt.get_or_insert(d),
                Match::No(a) => against = against.and(a),
            }
        }
    }
    match (on_assumption, doubt) {
        (Some((policy, rule, a)), _) => (Finding::Allowed(Because::Rule { policy, rule }), a.and(always)),
        (None, Some(doubt)) => (Finding::Undetermined(doubt), Assumed::NOTHING),
        (None, None) => (Finding::Denied, against),
    }
}

impl<'a> Side<'a> {
    fn without_policies(finding: Finding<'a>) -> Side<'a> {
        Side { finding, isolated_by: Policies::None, assumed: Assumed::NOTHING }
    }
}

/// A pod template stands for many pods, so it is never "the same pod".
pub(super) fn is_itself(view: PodView<'_>, peer: &PolicyEndpoint<'_>) -> bool {
    matches!(peer.identity, PolicyIdentity::Pod(other) if Arc::ptr_eq(other.pod, view.pod) && !view.pod.template)
}

fn is_own_node(view: PodView<'_>, peer: &PolicyEndpoint<'_>) -> bool {
    matches!(peer.identity, PolicyIdentity::Node(name) if view.pod.node.as_deref() == Some(name))
}
