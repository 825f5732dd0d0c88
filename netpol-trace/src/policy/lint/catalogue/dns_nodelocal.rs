//! NodeLocal DNSCache listens on the node, where no selector reaches it.

use std::net::IpAddr;

use crate::model::cluster::{Direction, Peer, Protocol, Rule};
use crate::policy::hint::NODE_LOCAL_DNS;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{LintContext, PolicyContext};
use crate::policy::lint::{LintFinding, Severity};
use crate::policy::matching::covers;

pub static LINT: Lint = Lint {
    id: "dns-nodelocal",
    severity: Severity::Warning,
    title: "DNS goes to the node-local cache",
    what: "With NodeLocal DNSCache, pods query 169.254.20.10 on their node; a rule that selects the DNS pods doesn't cover that address.",
    fix: "Allow port 53 to the cache's address by ipBlock too.",
    check: |context, findings| {
        if has_cache(context) {
            findings.extend(context.policies.iter().filter_map(|at| finding(context, at)));
        }
    },
};

fn has_cache(context: &LintContext<'_>) -> bool {
    let is_cache = |name: &str| name.contains("node-local-dns") || name.contains("nodelocaldns");
    context.pods("kube-system").iter().any(|view| {
        let app = view.pod.labels.get("k8s-app");
        view.pod.host_network && (is_cache(&view.pod.name) || app.is_some_and(|app| is_cache(app)))
    })
}

/// One finding for a policy, at its first rule for DNS.
fn finding(context: &LintContext<'_>, at: &PolicyContext<'_>) -> Option<LintFinding> {
    let cache = IpAddr::from(NODE_LOCAL_DNS);
    let block = |peer: &Peer| matches!(peer, Peer::Block { cidr, .. } if cidr.contains(&cache));
    let allows = |rule: &Rule| rule.peers.as_deref().is_none_or(|peers| peers.is_empty() || peers.iter().any(block));
    let selects_dns_pods = |rule: &Rule| {
        let lists_dns = rule.ports.iter().flatten().any(|p| p.protocol == Protocol::Udp && covers(p, 53));
        lists_dns && rule.peers.as_ref().is_some_and(|peers| !peers.is_empty())
    };
    let rule = at.rules(Direction::Egress).find(|rule| selects_dns_pods(rule.rule))?;
    let mut policies = context.also_on_subjects(at.policy, Direction::Egress);
    if policies.any(|other| other.policy.egress.iter().any(allows)) {
        return None;
    }
    let message =
        format!("this cluster has NodeLocal DNSCache: pods query {cache} on their node, which no selector matches");
    let fix = format!("add to the list:\n- ipBlock: {{cidr: {cache}/32}}");
    Some(LINT.finding(at, &rule.peers_path(), message, fix))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn selectors_do_not_reach_the_cache() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 5353, protocol: UDP}]}]}",
            expect![[r#"
                warning[dns-nodelocal] spec.egress[0].to: this cluster has NodeLocal DNSCache: pods query 169.254.20.10 on their node, which no selector matches
                  add to the list:
                  - ipBlock: {cidr: 169.254.20.10/32}
            "#]],
        );
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}, {ipBlock: {cidr: 169.254.20.10/32}}], ports: [{port: 53, protocol: UDP}, {port: 5353, protocol: UDP}]}]}",
            expect![[""]],
        );
    }
}
