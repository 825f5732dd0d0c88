//! A selector that matches hostNetwork pods only: their packets have the node's address.

use std::net::IpAddr;

use crate::model::cluster::{Peer, Selector};
use crate::policy::lint::catalogue::{Lint, apiserver};
use crate::policy::lint::context::{LintContext, PolicyContext, RuleContext};
use crate::policy::lint::text::{list, names};
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "hostnet-peer",
    severity: Severity::Warning,
    title: "The selector points at hostNetwork pods",
    what: "Pods on the host network have their node's address: selectors don't match them.",
    fix: "Allow the nodes' addresses by ipBlock.",
    check: |context, findings| {
        findings.extend(context.policies.iter().filter_map(|at| subject(context, at)));
        for rule in context.rules() {
            for (i, peer) in rule.peers() {
                let Peer::Pods { pods: Some(selector), .. } = peer else { continue };
                findings.extend(pods(context, &rule, i, peer, selector));
            }
        }
    },
};

fn subject(context: &LintContext<'_>, at: &PolicyContext<'_>) -> Option<LintFinding> {
    let selector = &at.policy.subject;
    let mut matching = context.pods(&at.policy.namespace);
    matching.retain(|view| selector.matches(&view.pod.labels));
    if selector.is_everything() || matching.is_empty() || matching.iter().any(|view| !view.pod.host_network) {
        return None;
    }
    let message = format!("selects only hostNetwork pods ({}): no policy applies to them", names(&matching));
    let fix = "isolate the host with a host firewall or the plugin's host policies".to_owned();
    Some(LINT.finding(at, "spec.podSelector", message, fix))
}

fn pods(
    context: &LintContext<'_>,
    rule: &RuleContext<'_>,
    item: usize,
    peer: &Peer,
    selector: &Selector,
) -> Option<LintFinding> {
    if selector.is_everything() || apiserver::is_meant(rule, selector) {
        return None;
    }
    let pods = context.peers(rule.policy.policy, peer)?.pods;
    if pods.is_empty() || pods.iter().any(|view| !view.pod.host_network) {
        return None;
    }
    let mut ips: Vec<IpAddr> = pods.iter().flat_map(|view| view.pod.ips.iter().copied()).collect();
    if ips.is_empty() {
        ips = context.index.nodes().flat_map(|node| node.ips.iter().copied()).collect();
    }
    ips.sort();
    ips.dedup();
    let shown: Vec<String> = ips.iter().map(|ip| ipnet::IpNet::from(*ip).to_string()).collect();
    let which = if shown.is_empty() { String::new() } else { format!(" ({})", list(&shown, 4)) };
    let message =
        format!("{selector} selects only {}, on the host network: its packets have the node's address", names(&pods));
    let fix = format!("allow the nodes' addresses by ipBlock{which}");
    Some(LINT.finding(rule.policy, &format!("{}.podSelector", rule.peer_path(item)), message, fix))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn a_peer_on_the_host_network() {
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}, podSelector: {matchLabels: {app: agent}}}]}]}",
            expect![[r#"
                warning[hostnet-peer] spec.ingress[0].from[0].podSelector: app=agent selects only bank/agent, on the host network: its packets have the node's address
                  allow the nodes' addresses by ipBlock (192.168.0.1/32)
            "#]],
        );
    }
}
