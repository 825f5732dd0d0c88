//! The rule that came closest to a match.
//!
//! Every rule of every isolating policy gets a weight, the sum over what it misses; the lightest wins. Two misses always
//! weigh more than one, so the order is: fewest misses first, then the smallest.
//!
//! | what the rule misses | weight |
//! |---|---|
//! | the direction is not in `policyTypes`, all else matches | 9 |
//! | protocol, with the right port | 10 |
//! | one label's value | 10, each further label + 1 |
//! | one label that is absent | 11, each further label + 1 |
//! | port, with the right protocol | 11 |
//! | a named port that the destination pod does not have | 12 |
//! | one label of the namespace | as a pod's, + 2 |
//! | another namespace, where there is no namespaceSelector | 14 |
//! | `ipBlock`, by an exception | 12 |
//! | `ipBlock`, address outside | 14; of the other family 15 |
//! | port and protocol | 14 |
//! | a peer of another kind: selectors for an address outside, an `ipBlock` for a pod without address | 24 |
//! | no rule at all in this direction | 1000 |
//!
//! Labels of one selector weigh at most 19. Equal weights: the policy first by name, then the rule, peer and port
//! first in the file.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::index::PodView;
use crate::model::cluster::{
    Direction, Labels, Operator, Peer, Policy, PortMatch, PortSpec, Requirement, Rule, Selector,
};
use crate::policy::evaluate::{IsolatingPolicies, PolicyResult, SideEvaluation};
use crate::policy::matching::{Match, Matcher, in_block};
use crate::policy::{PolicyIdentity, Transport};

/// No rule in this direction: the farthest from a match.
const NO_RULE: u32 = 1000;
const OTHER_KIND: u32 = 24;
const LABELS_AT_MOST: u32 = 19;

/// The rule that came closest, and which of its parts missed.
#[derive(Debug, Clone, Copy)]
pub struct NearestRule<'a> {
    pub policy: &'a Arc<Policy>,
    /// `None`: the policy has no rule in this direction.
    pub rule: Option<usize>,
    /// The peer that came closest, when no peer of the rule matches.
    pub peer: Option<usize>,
    /// The port that came closest, when no port of the rule matches.
    pub port: Option<usize>,
    /// The rule matches, but its direction is not among the policy's types, so it is not in force.
    pub type_missing: bool,
    weight: u32,
}

/// Finds the rule that came closest on a side that denies; `None` on a side that does not.
pub(super) fn nearest<'a>(matcher: &Matcher<'_, 'a>, side: &SideEvaluation<'a>) -> Option<NearestRule<'a>> {
    if !matches!(side.result, PolicyResult::Denied) {
        return None;
    }
    let enforced = side.isolated_by.iter().flat_map(|policy| matcher.candidates(policy));
    let inert = matcher.inert(side.isolated_by);
    // min_by_key keeps the first of equals: policies come by name, rules in their order.
    enforced.chain(inert).min_by_key(|candidate| candidate.weight)
}

impl<'a> Matcher<'_, 'a> {
    fn candidates(&self, policy: &'a Arc<Policy>) -> impl Iterator<Item = NearestRule<'a>> {
        let rules = policy.rules(self.direction);
        let none = rules.is_empty().then_some(NearestRule {
            policy,
            rule: None,
            peer: None,
            port: None,
            type_missing: false,
            weight: NO_RULE,
        });
        none.into_iter().chain(rules.iter().enumerate().map(move |(i, rule)| self.weigh(policy, i, rule)))
    }

    pub(super) fn weigh(&self, policy: &'a Arc<Policy>, at: usize, rule: &Rule) -> NearestRule<'a> {
        let peer = match self.peers(policy, rule) {
            Match::No(_) => lightest(rule.peers.as_deref(), |peer| self.peer_weight(policy, peer)),
            _ => None,
        };
        let port = match self.ports(rule) {
            Match::No(_) => lightest(rule.ports.as_deref(), |port| self.port_weight(port)),
            _ => None,
        };
        NearestRule {
            policy,
            rule: Some(at),
            peer: peer.map(|(at, _)| at),
            port: port.map(|(at, _)| at),
            type_missing: false,
            weight: peer.map_or(0, |(_, weight)| weight) + port.map_or(0, |(_, weight)| weight),
        }
    }

    /// Rules that would match, of policies that select the pod but do not have the direction among their types.
    fn inert(&self, isolated_by: IsolatingPolicies<'a>) -> impl Iterator<Item = NearestRule<'a>> {
        let subject = match (self.direction, isolated_by) {
            (_, IsolatingPolicies::None) => None,
            (Direction::Egress, _) => as_pod(&self.connection.source.identity),
            (Direction::Ingress, _) => as_pod(&self.connection.destination.identity),
        };
        let policies = subject.into_iter().flat_map(move |view| {
            let selects = move |p: &&Arc<Policy>| {
                let inert = !p.rules(self.direction).is_empty() && !p.isolates(self.direction);
                inert && p.subject.matches(&view.pod.labels)
            };
            view.namespace.policies().filter(selects)
        });
        policies.filter_map(|policy| {
            let rules = policy.rules(self.direction);
            let rule = rules.iter().position(|rule| matches!(self.rule(policy, rule), Match::Yes(_)))?;
            Some(NearestRule { policy, rule: Some(rule), peer: None, port: None, type_missing: true, weight: 9 })
        })
    }

    fn peer_weight(&self, policy: &Policy, peer: &Peer) -> u32 {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let Some(view) = as_pod(&self.peer().identity).filter(|view| self.is_selectable(view)) else {
                    return OTHER_KIND;
                };
                self.namespace_weight(policy, namespaces.as_ref(), view)
                    + pods.as_ref().map_or(0, |s| labels_weight(s, |r| r.matches(&view.pod.labels), &view.pod.labels))
            }
            Peer::Block { cidr, except } => {
                let addresses = self.peer_addresses();
                if addresses.is_empty() || addresses.iter().any(|ip| in_block(cidr, except, *ip)) {
                    // Inside without a match: this CNI does not match pods by ipBlock.
                    OTHER_KIND
                } else if addresses.iter().any(|ip| in_block(cidr, &[], *ip)) {
                    12
                } else if addresses.iter().any(|ip| ip.to_canonical().is_ipv4() == cidr.addr().is_ipv4()) {
                    14
                } else {
                    15
                }
            }
        }
    }

    fn namespace_weight(&self, policy: &Policy, selector: Option<&Selector>, view: PodView<'a>) -> u32 {
        if !matches!(self.namespace_matches(policy, selector), Match::No(_)) {
            return 0;
        }
        let Some(selector) = selector else { return 14 };
        let nothing = Labels::default();
        let labels = view.namespace.labels().unwrap_or(&nothing);
        labels_weight(selector, |r| !self.misses_namespace(r, view), labels) + 2
    }

    fn port_weight(&self, want: &PortMatch) -> u32 {
        let Transport::Named(protocol) = self.connection.transport else { return 14 };
        let same_port = match (&want.port, self.connection.port) {
            (PortSpec::Any, _) => true,
            (PortSpec::Range(first, last), Some(port)) => (*first..=*last).contains(&port),
            (PortSpec::Range(..), None) => false,
            (PortSpec::Named(_), _) if protocol == want.protocol => return 12,
            (PortSpec::Named(name), port) => as_pod(&self.connection.destination.identity).is_some_and(|view| {
                view.pod.ports.iter().any(|p| p.name.as_ref() == Some(name) && Some(p.port) == port)
            }),
        };
        match (protocol == want.protocol, same_port) {
            (false, true) => 10,
            (true, _) => 11,
            (false, false) => 14,
        }
    }

    /// Whether selectors can select this pod at all.
    pub(super) fn is_selectable(&self, view: &PodView<'_>) -> bool {
        !(view.pod.host_network && self.options.host_network_is_pod == Some(false))
    }

    /// Whether the peer's namespace is known to miss this requirement.
    pub(super) fn misses_namespace(&self, requirement: &Requirement, view: PodView<'_>) -> bool {
        matches!(
            crate::policy::matching::namespace_requirement(requirement, &view.pod.namespace, view.namespace),
            Match::No(_)
        )
    }

    pub(super) fn peer_addresses(&self) -> &[IpAddr] {
        let endpoint = self.peer();
        match (&endpoint.ip, &endpoint.identity) {
            (Some(ip), _) => std::slice::from_ref(ip),
            (None, PolicyIdentity::Pod(view)) => &view.pod.ips,
            (None, _) => &[],
        }
    }
}

pub(super) fn as_pod<'a>(identity: &PolicyIdentity<'a>) -> Option<PodView<'a>> {
    match identity {
        PolicyIdentity::Pod(view) => Some(*view),
        _ => None,
    }
}

fn lightest<T>(items: Option<&[T]>, weigh: impl Fn(&T) -> u32) -> Option<(usize, u32)> {
    items?.iter().map(weigh).enumerate().min_by_key(|(_, weight)| *weight)
}

fn labels_weight(selector: &Selector, holds: impl Fn(&Requirement) -> bool, labels: &Labels) -> u32 {
    let mut weight = 0;
    for requirement in selector.requirements.iter().filter(|r| !holds(r)) {
        let absent = matches!(requirement.operator, Operator::In(_) | Operator::Exists)
            && labels.get(&requirement.key).is_none();
        weight = if weight == 0 { 10 + u32::from(absent) } else { weight + 1 + u32::from(absent) };
        if weight >= LABELS_AT_MOST {
            return LABELS_AT_MOST;
        }
    }
    weight
}
