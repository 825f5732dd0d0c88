//! Which pods are isolated at all: subjects, policyTypes, namespaces, default denies.

use std::collections::BTreeMap;

use crate::cluster::Object;
use crate::model::cluster::{Direction, Policy};
use crate::policy::lint::context::{Context, PolicyContext, covers, list, names, nearest};
use crate::policy::lint::{Finding, Severity};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

pub fn check(context: &Context<'_>, policy: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    subject(context, policy, findings);
    types(policy, findings);
    no_namespace(context, policy, findings);
    lockout(context, policy, findings);
}

/// no-match, wrong-ns and hostnet-peer of `spec.podSelector`.
fn subject(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    let policy = at.policy;
    let (namespace, selector) = (&policy.namespace, &policy.subject);
    let pods = context.pods(namespace);
    if selector.is_everything() || pods.is_empty() {
        return;
    }
    let matching: Vec<_> = pods.iter().copied().filter(|view| selector.matches(&view.pod.labels)).collect();
    if matching.iter().any(|view| !view.pod.host_network) {
        return;
    }
    if !matching.is_empty() {
        let message = format!("selects only hostNetwork pods ({}): no policy applies to them", names(&matching));
        let fix = "isolate the host with a host firewall or your plugin's host policies".to_owned();
        findings.push(at.finding("hostnet-peer", "spec.podSelector", message, fix));
        return;
    }
    let mut elsewhere: Vec<&str> = Vec::new();
    for (name, _) in context.index.namespaces() {
        let there = context.pods(name);
        if there.iter().any(|view| !view.pod.host_network && selector.matches(&view.pod.labels)) {
            elsewhere.push(name);
        }
    }
    elsewhere.sort_unstable();
    if elsewhere.is_empty() {
        let nearest = nearest(selector, &pods).map(|text| format!("; nearest: {text}")).unwrap_or_default();
        let message = format!("podSelector {selector} matches no pod of namespace {namespace}{nearest}");
        let fix = "correct the label, or remove the policy: it isolates nothing".to_owned();
        findings.push(at.finding("no-match", "spec.podSelector", message, fix));
    } else {
        let message = format!(
            "podSelector {selector} matches no pod of namespace {namespace}, where the policy is; such pods are in {}",
            list(&elsewhere, 3)
        );
        let fix = format!("set metadata.namespace: {}", elsewhere.first().copied().unwrap_or_default());
        findings.push(at.finding("wrong-ns", "spec.podSelector", message, fix));
    }
}

fn types(at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    let policy = at.policy;
    for direction in DIRECTIONS {
        let rules = policy.rules(direction).len();
        let field = format!("spec.{direction}");
        let name = type_name(direction);
        match &policy.declared_types {
            Some(types) if !types.contains(&direction) && rules > 0 => {
                let message = format!(
                    "{rules} {direction} rule{} but policyTypes is without {name}: they do nothing, {direction} of these pods stays \
                     as it is (some CNIs apply them all the same)",
                    if rules == 1 { "" } else { "s" }
                );
                let fix = "write `policyTypes: [Ingress, Egress]`, or remove the rules".to_owned();
                findings.push(at.finding("types-missing", &field, message, fix));
            }
            None if direction == Direction::Egress && rules == 0 && at.has(&field) => {
                let message = "an empty egress list without policyTypes isolates nothing: egress stays open".to_owned();
                let fix = "to deny egress write `policyTypes: [Ingress, Egress]`".to_owned();
                findings.push(at.finding("types-missing", &field, message, fix));
            }
            None if direction == Direction::Ingress && rules == 0 && !policy.egress.is_empty() => {
                let message =
                    "egress rules without policyTypes: the default isolates ingress too, and no rule allows any"
                        .to_owned();
                let fix = "write `policyTypes: [Egress]`; or `[Ingress, Egress]` if ingress is to be denied".to_owned();
                findings.push(at.finding("types-missing", "spec", message, fix));
            }
            _ => {}
        }
    }
}

fn type_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}

/// A policy that denies all of a direction to every pod.
fn denies_all(policy: &Policy) -> Vec<Direction> {
    let denied = |d: &Direction| policy.subject.is_everything() && policy.isolates(*d) && policy.rules(*d).is_empty();
    DIRECTIONS.into_iter().filter(denied).collect()
}

fn no_namespace(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    if !at.located.namespace_defaulted || denies_all(at.policy).is_empty() {
        return;
    }
    let message =
        "no metadata.namespace: this default deny isolates one namespace, the one that kubectl happens to be set to \
                   (here taken as `default`), not the cluster"
            .to_owned();
    let fix =
        "write metadata.namespace, one such policy for each namespace; for all at once use a cluster-wide policy API \
               (ClusterNetworkPolicy, GlobalNetworkPolicy, CiliumClusterwideNetworkPolicy)"
            .to_owned();
    let mut finding = at.finding("no-namespace", "metadata", message, fix);
    if context.is_chart() {
        finding.severity = Severity::Info;
    }
    findings.push(finding);
}

/// Both directions denied, and nobody allows anything to any of these pods.
fn lockout(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    let policy = at.policy;
    if !DIRECTIONS.into_iter().all(|d| policy.isolates(d) && policy.rules(d).is_empty()) {
        return;
    }
    let subjects = context.subjects(policy);
    let allowed = context.policies_of(&policy.namespace).any(|other| {
        let other = other.policy;
        let allows = DIRECTIONS.into_iter().any(|d| other.isolates(d) && !other.rules(d).is_empty());
        // Any overlap counts where the pods aren't known.
        let overlaps =
            subjects.is_empty() && (policy.subject.is_everything() || covers(&other.subject, &policy.subject));
        let selects = subjects.iter().any(|view| other.subject.matches(&view.pod.labels));
        allows && (overlaps || selects)
    });
    if allowed {
        return;
    }
    let who = match (policy.subject.is_everything(), subjects.is_empty()) {
        (true, _) => format!("every pod of namespace {}", policy.namespace),
        (false, true) => format!("the pods with {}", policy.subject),
        (false, false) => names(&subjects),
    };
    let message = format!("denies {who} all ingress and egress, DNS included, and no policy here allows them anything");
    let fix = format!(
        "add policies that allow what is needed; DNS first:\n{}",
        crate::policy::lint::dns::allow_dns(context, policy)
    );
    findings.push(at.finding("lockout", "spec", message, fix));
}

impl PolicyContext<'_> {
    fn has(&self, field: &str) -> bool {
        self.located.has(field)
    }
}

/// open-pods, per namespace and direction-less: pods that no policy selects. And not-enforced.
pub fn check_cluster(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let mut open: BTreeMap<&str, Vec<&crate::cluster::manifests::Located>> = BTreeMap::new();
    for located in &context.loaded.objects {
        let Object::Pod(pod) = &located.object else { continue };
        let view = match &pod.owner {
            Some(owner) if pod.template => context.index.workload(&pod.namespace, &owner.kind, &pod.name),
            _ => context.index.pod(&pod.namespace, &pod.name),
        };
        // A policy that selects a pod isolates it in one direction at least.
        let selected = view.is_some_and(|view| DIRECTIONS.into_iter().any(|d| !view.isolated_by(d).is_empty()));
        if !selected && !pod.host_network && !pod.is_over() {
            open.entry(&pod.namespace).or_default().push(located);
        }
    }
    for (namespace, located) in open {
        let Some(first) = located.first() else { continue };
        let shown: Vec<String> =
            located.iter().map(|l| l.object.identity()).map(|(kind, _, name)| format!("{kind} {name}")).collect();
        findings.push(Finding {
            id: "open-pods",
            severity: Severity::Info,
            place: first.place.clone(),
            object: format!("Namespace {namespace}"),
            message: format!("no policy selects {}: open to everybody", list(&shown, 5)),
            fix: format!("add a default deny to namespace {namespace}, and allows for what is needed"),
        });
    }
    not_enforced(context, findings);
}

/// Plugins that are known to apply no policies, and those that do and may stand beside one of the first.
fn not_enforced(context: &Context<'_>, findings: &mut Vec<Finding>) {
    const ENFORCERS: [&str; 9] =
        ["calico", "cilium", "canal", "kube-router", "antrea", "weave", "ovn", "aws-node", "network-polic"];
    let daemons = |name: &str| {
        context.loaded.objects.iter().any(|located| {
            let (kind, _, daemon) = located.object.identity();
            matches!(kind, "DaemonSet" | "Pod") && daemon.contains(name)
        })
    };
    let Some(first) = context.policies.first() else { return };
    if daemons("flannel") && !ENFORCERS.iter().any(|name| daemons(name)) {
        let message = "the network plugin in this input is flannel, which applies no NetworkPolicy: all of them are without effect";
        let fix =
            "run a plugin with NetworkPolicy support, for example Calico (canal), Cilium or kube-router's policy part";
        findings.push(first.finding("not-enforced", "", message.to_owned(), fix.to_owned()));
    }
}
