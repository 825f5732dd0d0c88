//! Renders an evaluation as the record's verdict: owned, in words, with the nearest rules.

use std::fmt::Write;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::cluster::Index;
use crate::model::Basis;
use crate::model::cluster::{Direction, OtherPolicy, Policy};
use crate::policy::evaluate::{AllowedBy, PolicyEvaluation, PolicyResult, SideEvaluation, evaluate};
use crate::policy::matching::{Assumptions, Matcher, UndeterminedReason};
use crate::policy::miss::text;
use crate::policy::nearest::{NearestRule, nearest};
use crate::policy::{CniOptions, Connection, PolicyIdentity};

/// Policies of other APIs that a note names.
const OTHERS_NAMED: usize = 3;
/// Recently changed policies that a side names.
const CHANGES_NAMED: usize = 10;

/// Evaluates `connection` and renders the record's verdict.
pub fn verdict_of(index: &Index, connection: &Connection<'_>, options: &CniOptions) -> crate::model::Verdict {
    explain(index, connection, options, &evaluate(index, connection, options)).verdict
}

/// A verdict in words and the rules that it calls nearest: the input of a hint.
pub struct ExplainedVerdict<'a> {
    pub verdict: crate::model::Verdict,
    pub(super) nearest: [Option<NearestRule<'a>>; 2],
}

/// Renders what [`evaluate`] returned for `connection`.
pub fn explain<'a>(
    index: &Index,
    connection: &Connection<'a>,
    options: &CniOptions,
    evaluation: &PolicyEvaluation<'a>,
) -> ExplainedVerdict<'a> {
    let result = evaluation.result();
    let basis = match result {
        PolicyResult::Undetermined(reason) => reason.basis(),
        _ => Basis::NetworkPolicyV1,
    };
    let matcher = |direction| Matcher::new(index, connection, options, direction);
    let of = |direction| side(&matcher(direction), evaluation.side(direction));
    let ((egress, nearest_egress), (ingress, nearest_ingress)) = (of(Direction::Egress), of(Direction::Ingress));
    let notes = notes(index, connection, evaluation);
    let verdict = crate::model::Verdict { result: verdict_result(result), basis: basis.into(), egress, ingress, notes };
    // In the order of `Direction`.
    ExplainedVerdict { verdict, nearest: [nearest_ingress, nearest_egress] }
}

/// The result as a record has it.
pub fn verdict_result(result: PolicyResult<'_>) -> crate::model::VerdictResult {
    match result {
        PolicyResult::Allowed(_) => crate::model::VerdictResult::Allowed,
        PolicyResult::Denied => crate::model::VerdictResult::Denied,
        PolicyResult::Undetermined(_) => crate::model::VerdictResult::Undetermined,
    }
}

fn side<'a>(matcher: &Matcher<'_, 'a>, side: &SideEvaluation<'a>) -> (crate::model::Side, Option<NearestRule<'a>>) {
    let direction = matcher.direction;
    let (allowed_by, why) = match side.result {
        PolicyResult::Allowed(AllowedBy::Rule { policy, rule }) => {
            let rule = crate::model::RuleRef { policy: policy_name(policy), rule: rule_name(direction, rule) };
            (Some(rule), None)
        }
        PolicyResult::Undetermined(reason) => (None, Some(reason.why(direction).to_owned())),
        PolicyResult::Allowed(_) | PolicyResult::Denied => (None, None),
    };
    let nearest = nearest(matcher, side);
    let rendered = crate::model::Side {
        result: verdict_result(side.result),
        isolated_by: side.isolated_by.iter().map(|policy| policy_ref(policy, matcher.connection.at)).collect(),
        allowed_by,
        nearest: nearest.map(|nearest| crate::model::Nearest {
            policy: policy_name(nearest.policy),
            rule: nearest.rule.map(|rule| rule_name(direction, rule)),
            misses: nearest.misses(matcher),
        }),
        why,
        changed: Vec::new(),
    };
    (rendered, nearest)
}

impl PolicyEvaluation<'_> {
    /// The half-open span of time in which [`explain`] renders the same text as for `at`, while the index is the same. The text
    /// has the seconds since each policy changed. `None`: a policy changed after `at`.
    pub fn holds_at(&self, at: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let (mut from, mut until) = (Timestamp::MIN, Timestamp::MAX);
        let isolating = [&self.egress, &self.ingress].into_iter().flat_map(|side| side.isolated_by.iter());
        for changed in isolating.filter_map(|policy| policy.changed) {
            let ago = at.duration_since(changed);
            if ago.is_negative() {
                return None;
            }
            let second = changed.saturating_add(SignedDuration::from_secs(ago.as_secs())).ok()?;
            from = from.max(second);
            until = until.min(second.saturating_add(SignedDuration::from_secs(1)).ok()?);
        }
        Some((from, until))
    }
}

/// Adds the policies that isolate either endpoint, or did, and changed within `span` of the drop.
pub fn name_changes(
    verdict: &mut crate::model::Verdict,
    index: &Index,
    connection: &Connection<'_>,
    span: SignedDuration,
) {
    let Some(at) = connection.at else { return };
    for (side, endpoint, direction) in [
        (&mut verdict.egress, &connection.source, Direction::Egress),
        (&mut verdict.ingress, &connection.destination, Direction::Ingress),
    ] {
        let PolicyIdentity::Pod(view) = endpoint.identity else { continue };
        let isolates = |policy: &&Arc<Policy>| policy.isolates(direction) && policy.subject.matches(&view.pod.labels);
        let changed = index.policies_changed_near(&view.pod.namespace, at, span).into_iter().filter_map(|changed| {
            let relevant = !view.pod.host_network && changed.before.iter().chain(&changed.after).any(isolates);
            let policy = changed.after.or(changed.before).filter(|_| relevant)?;
            Some(crate::model::ChangedPolicy {
                namespace: policy.namespace.to_string(),
                name: policy.name.to_string(),
                uid: policy.uid.as_ref().map(ToString::to_string),
                generation: policy.generation,
                change: crate::model::ChangeKind::of(changed.before.is_some(), changed.after.is_some()),
                changed_ago_seconds: at.duration_since(changed.at).as_secs(),
            })
        });
        side.changed = changed.take(CHANGES_NAMED).collect();
    }
}

fn policy_name(policy: &Policy) -> String {
    [&*policy.namespace, "/", &*policy.name].concat()
}

/// `ingress[0]`
fn rule_name(direction: Direction, rule: usize) -> String {
    text(16, format_args!("{direction}[{rule}]"))
}

fn policy_ref(policy: &Policy, at: Option<Timestamp>) -> crate::model::PolicyRef {
    let changed_ago = at.zip(policy.changed).map(|(at, changed)| at.duration_since(changed).as_secs());
    crate::model::PolicyRef {
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        uid: policy.uid.clone(),
        generation: policy.generation,
        changed_ago_seconds: changed_ago.map(|seconds| u64::try_from(seconds).unwrap_or(0)),
    }
}

fn notes(index: &Index, connection: &Connection<'_>, evaluation: &PolicyEvaluation<'_>) -> Vec<String> {
    let assumed = evaluation.egress.assumed.and(evaluation.ingress.assumed);
    let texts = [
        (
            Assumptions::IPBLOCK,
            "assumes how this CNI compares an ipBlock with a pod's address (Kubernetes leaves it open)",
        ),
        (Assumptions::HOST_NETWORK, "assumes how this CNI treats hostNetwork pods (Kubernetes leaves it open)"),
        (Assumptions::OWN_NODE, "assumes how this CNI treats traffic between a pod and its own node"),
        (Assumptions::OTHER_PROTOCOL, "assumes how this CNI treats protocols that NetworkPolicy can't name"),
        (Assumptions::SIDECAR_PORT, "the named port is declared by a native sidecar: older plugins don't resolve it"),
    ];
    let mut notes: Vec<String> =
        texts.iter().filter(|(point, _)| assumed.contains(*point)).map(|(_, text)| (*text).to_owned()).collect();
    notes.extend(other_policies_note(index.other_policies(), connection));
    notes
}

/// Names policies of other APIs that may select either endpoint: those of the endpoints' namespaces, and the cluster-wide ones.
fn other_policies_note<'a>(
    others: impl Iterator<Item = &'a OtherPolicy>,
    connection: &Connection<'_>,
) -> Option<String> {
    let namespace = |identity: &PolicyIdentity<'_>| match identity {
        PolicyIdentity::Pod(view) => Some(view.pod.namespace.clone()),
        _ => None,
    };
    let endpoints = [namespace(&connection.source.identity), namespace(&connection.destination.identity)];
    let mut relevant = others.filter(|o| o.namespace.is_none() || endpoints.contains(&o.namespace));
    let mut names = String::new();
    for other in relevant.by_ref().take(OTHERS_NAMED) {
        let separator = if names.is_empty() { "" } else { ", " };
        // Writing to a String can't fail.
        _ = match &other.namespace {
            Some(namespace) => write!(names, "{separator}{} {namespace}/{}", other.kind, other.name),
            None => write!(names, "{separator}{} {}", other.kind, other.name),
        };
    }
    if names.is_empty() {
        return None;
    }
    let more = relevant.count();
    if more > 0 {
        _ = write!(names, " and {more} more");
    }
    Some(format!("covers NetworkPolicy v1 only; also present, not evaluated: {names}"))
}

impl UndeterminedReason {
    /// The record's `basis`.
    pub fn basis(self) -> Basis {
        match self {
            UndeterminedReason::UnknownEndpoint | UndeterminedReason::UnknownPort => Basis::AddressesOnly,
            UndeterminedReason::NamespaceLabels => Basis::UndefinedNamespaceLabels,
            UndeterminedReason::HostNetwork => Basis::UndefinedHostNetwork,
            UndeterminedReason::IpBlock => Basis::UndefinedIpBlock,
            UndeterminedReason::OwnNode => Basis::UndefinedOwnNode,
            UndeterminedReason::Icmp => Basis::UndefinedIcmp,
            UndeterminedReason::Protocol => Basis::UndefinedProtocol,
            UndeterminedReason::ServiceAddress => Basis::UndefinedServiceAddress,
        }
    }

    /// Why a side is undetermined, in words.
    pub fn why(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (UndeterminedReason::UnknownEndpoint, _) => {
                "the owner of an endpoint's address is not known, and a rule depends on it"
            }
            (UndeterminedReason::UnknownPort, _) => "the destination port is not known, and a rule depends on it",
            (UndeterminedReason::NamespaceLabels, _) => {
                "a rule selects namespaces by labels, and the labels of the peer's namespace are not known"
            }
            (UndeterminedReason::HostNetwork, _) => {
                "hostNetwork: whether policy sees the pod or its node depends on the CNI"
            }
            (UndeterminedReason::IpBlock, _) => "whether an ipBlock matches a pod's address depends on the CNI",
            (UndeterminedReason::OwnNode, _) => "whether a pod and its own node may always talk depends on the CNI",
            (UndeterminedReason::Icmp, _) => {
                "NetworkPolicy v1 can't name ICMP; what isolation does to it depends on the CNI"
            }
            (UndeterminedReason::Protocol, _) => {
                "NetworkPolicy v1 names TCP, UDP and SCTP only; for others it depends on the CNI"
            }
            (UndeterminedReason::ServiceAddress, Direction::Egress) => {
                "the destination is a service's address: policy sees the backend, which is not known"
            }
            (UndeterminedReason::ServiceAddress, Direction::Ingress) => {
                "the destination is a service's address: the backend, and what isolates it, is not known"
            }
        }
    }
}
