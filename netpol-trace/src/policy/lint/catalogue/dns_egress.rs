//! Egress is isolated and no rule allows DNS: the first thing that an egress policy breaks.

use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, Peer, Policy, PortSpec, Protocol, Rule};
use crate::policy::lint::catalogue::{Lint, lockout};
use crate::policy::lint::context::{LintContext, PolicyContext};
use crate::policy::lint::text::names;
use crate::policy::lint::yaml::dns_rule;
use crate::policy::lint::{LintFinding, Severity};
use crate::policy::matching::covers;

pub static LINT: Lint = Lint {
    id: "dns-egress",
    severity: Severity::Warning,
    title: "Egress is isolated, DNS is not allowed",
    what: "Pods whose egress is isolated can't resolve any name unless a rule allows port 53.",
    fix: "Allow 53/UDP and 53/TCP to the cluster's DNS pods.",
    check: |context, findings| {
        let egress = context.policies.iter().filter(|at| at.policy.isolates(Direction::Egress));
        findings.extend(egress.filter_map(|at| finding(context, at)));
    },
};

fn finding(context: &LintContext<'_>, at: &PolicyContext<'_>) -> Option<LintFinding> {
    let policy = at.policy;
    let subjects = context.subjects(policy);
    let on_pod = |view: &PodView<'_>| view.isolated_by(Direction::Egress).to_vec();
    let without: Vec<PodView<'_>> =
        subjects.iter().copied().filter(|view| !has_dns(context, on_pod(view).iter().map(|p| &**p))).collect();
    let known = !subjects.is_empty();
    let covered = || has_dns(context, context.also_on_subjects(policy, Direction::Egress).map(|other| other.policy));
    if if known { without.is_empty() } else { covered() } {
        return None;
    }
    if policy.egress.is_empty() {
        // One workload that may send nothing is a decision, and other policies complete a default deny; a namespace
        // where no pod may query DNS is a mistake.
        let other_allows = context.policies_of(&policy.namespace).any(|other| !other.policy.egress.is_empty());
        if !policy.subject.is_everything() || other_allows || lockout::locks_out(context, policy) {
            return None;
        }
    }
    let pods = match (known, policy.subject.is_everything()) {
        (true, _) => names(&without),
        (false, true) => format!("every pod of namespace {}", policy.namespace),
        (false, false) => format!("pods with {}", policy.subject),
    };
    let why = if policy.egress.is_empty() {
        "egress is denied, and no policy allows port 53"
    } else if policy.egress.iter().any(allows_default_route) {
        "the cluster's DNS is in the private ranges that `except` lists, and no rule allows it"
    } else {
        "egress is isolated, and no rule allows port 53"
    };
    let message = format!("no name resolves for {pods}: {why}");
    Some(LINT.finding(at, "spec.egress", message, format!("add to spec.egress:\n{}", dns_rule(context))))
}

/// Whether any of the policies allows DNS.
fn has_dns<'c>(context: &LintContext<'_>, mut policies: impl Iterator<Item = &'c Policy>) -> bool {
    policies.any(|policy| policy.egress.iter().any(|rule| allows_dns(context, policy, rule)))
}

fn allows_dns(context: &LintContext<'_>, policy: &Policy, rule: &Rule) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    // 53, or the port on which OpenShift's DNS pods listen, or a port name: the author thought of DNS.
    let listed = ports.iter().any(|port| {
        let named = matches!(&port.port, PortSpec::Named(name) if name.starts_with("dns"));
        port.protocol == Protocol::Udp
            && !matches!(port.port, PortSpec::Any)
            && (covers(port, 53) || covers(port, 5353) || covers(port, 1053) || named)
    });
    // Port 53 without protocol: the author thought of DNS, and `proto-default` reports the rest.
    let half = ports.iter().any(|port| port.protocol_defaulted && port.port == PortSpec::Range(53, 53));
    let any = ports.is_empty() || ports.iter().any(|port| port.protocol == Protocol::Udp && covers(port, 53));
    listed || half || (any && reaches_dns(context, policy, rule))
}

/// Whether a rule for all ports may select the DNS pods. What the input does not show counts as yes.
fn reaches_dns(context: &LintContext<'_>, policy: &Policy, rule: &Rule) -> bool {
    let peers = rule.peers.as_deref().unwrap_or_default();
    let system = |namespace: &str| matches!(namespace, "kube-system" | "openshift-dns");
    let peer = |peer: &Peer| match peer {
        Peer::Block { cidr, except } => {
            // The private ranges hold nearly every cluster's pods and services.
            let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
            let holes = except.iter().filter(|hole| private.contains(&hole.to_string().as_str())).count();
            cidr.prefix_len() == 0 && holes == 0
        }
        Peer::Pods { namespaces: None, .. } => system(&policy.namespace),
        Peer::Pods { namespaces: Some(selector), .. } => {
            let named = |text: &str| selector.to_string().contains(text);
            selector.is_everything()
                || named("kube-system")
                || named("openshift-dns")
                || context.matching_namespaces(selector).iter().any(|(name, _)| system(name))
        }
    };
    peers.is_empty() || peers.iter().any(peer)
}

/// A rule for all ports of `0.0.0.0/0` or `::/0`: it has exceptions, else it would allow DNS.
fn allows_default_route(rule: &Rule) -> bool {
    let default_route = |peer: &Peer| matches!(peer, Peer::Block { cidr, .. } if cidr.prefix_len() == 0);
    rule.ports.as_deref().unwrap_or_default().is_empty() && rule.peers.iter().flatten().any(default_route)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn no_rule_for_dns() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}",
            expect![[r#"
                warning[dns-egress] spec.egress: no name resolves for shop/web: egress is isolated, and no rule allows port 53
                  add to spec.egress:
                  - to:
                    - namespaceSelector:
                        matchLabels: {kubernetes.io/metadata.name: kube-system}
                      podSelector:
                        matchLabels: {k8s-app: kube-dns}
                    ports:
                    - {protocol: UDP, port: 5353}
                    - {protocol: TCP, port: 5353}
            "#]],
        );
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: \"::/0\"}}]}]}",
            expect![[""]],
        );
    }
}
