//! The API server as a peer, by its pod's labels or its service's address: policy sees neither.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::cluster::{Direction, Operator, Peer, Selector};
use crate::policy::lint::catalogue::{Lint, ns_label};
use crate::policy::lint::context::{LintContext, RuleContext};
use crate::policy::lint::text::list;
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "apiserver",
    severity: Severity::Warning,
    title: "The API server can't be selected",
    what: "The API server is no pod of the pod network: it runs on its node's address, or outside of the cluster.",
    fix: "Allow the addresses of its endpoints by ipBlock, on their port (often 6443).",
    check: |context, findings| {
        for rule in context.rules().filter(|rule| rule.direction == Direction::Egress) {
            for (i, peer) in rule.peers() {
                findings.extend(match peer {
                    Peer::Block { cidr, .. } => service_address(context, &rule, i, cidr),
                    Peer::Pods { namespaces, pods: Some(pods) } => {
                        selector(context, &rule, i, namespaces.as_ref(), pods)
                    }
                    Peer::Pods { pods: None, .. } => None,
                });
            }
        }
    },
};

fn service_address(
    context: &LintContext<'_>,
    rule: &RuleContext<'_>,
    item: usize,
    cidr: &IpNet,
) -> Option<LintFinding> {
    context.service_in(cidr).filter(|service| is_api_server(&service.namespace, &service.name))?;
    let message =
        format!("{cidr} is the API server's service address: policy sees its endpoints, after the translation");
    let endpoints = endpoints(context, |ip, port| format!("{ip} port {port}"))
        .unwrap_or_else(|| "`kubectl get endpointslices -n default` shows them".to_owned());
    let fix = format!("allow the endpoints' addresses by ipBlock: {endpoints}");
    Some(LINT.finding(rule.policy, &format!("{}.ipBlock.cidr", rule.peer_path(item)), message, fix))
}

fn selector(
    context: &LintContext<'_>,
    rule: &RuleContext<'_>,
    item: usize,
    namespaces: Option<&Selector>,
    pods: &Selector,
) -> Option<LintFinding> {
    // A namespaceSelector that matches nothing is reported first.
    if !is_meant(rule, pods) || namespaces.is_some_and(|selector| ns_label::mistake(context, selector).is_some()) {
        return None;
    }
    let message = format!(
        "{pods} doesn't select the API server: the API server runs on its node's network, or outside of the cluster"
    );
    let endpoints = endpoints(context, |ip, port| format!("{ip}:{port}")).map_or_else(
        || "`kubectl get endpointslices -n default -l kubernetes.io/service-name=kubernetes` lists them".to_owned(),
        |list| format!("here {list}"),
    );
    let fix = format!("allow the addresses and port of its endpoints by ipBlock: {endpoints}");
    Some(LINT.finding(rule.policy, &format!("{}.podSelector", rule.peer_path(item)), message, fix))
}

/// Whether an egress rule's podSelector means the API server, by the labels of its static pod.
pub fn is_meant(rule: &RuleContext<'_>, pods: &Selector) -> bool {
    let names_it = pods.requirements.iter().any(|r| match &r.operator {
        Operator::In(values) => values.iter().any(|value| &**value == "kube-apiserver"),
        _ => false,
    });
    names_it && rule.direction == Direction::Egress
}

/// Whether a service is the API server's.
pub fn is_api_server(namespace: &str, service: &str) -> bool {
    (namespace, service) == ("default", "kubernetes")
}

/// The API server's endpoints, as far as the input shows them.
fn endpoints(context: &LintContext<'_>, show: fn(IpAddr, u16) -> String) -> Option<String> {
    let backends = context.index.service_backends("default", "kubernetes");
    let shown: Vec<String> = backends.filter_map(|b| Some(show(b.ip?, b.target_port))).collect();
    (!shown.is_empty()).then(|| list(&shown, 4))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn by_its_services_address() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}, {to: [{ipBlock: {cidr: 10.96.0.1/32}}]}]}",
            expect![[r#"
                warning[apiserver] spec.egress[1].to[0].ipBlock.cidr: 10.96.0.1/32 is the API server's service address: policy sees its endpoints, after the translation
                  allow the endpoints' addresses by ipBlock: 192.168.0.1 port 6443
            "#]],
        );
    }

    #[test]
    fn by_its_pods_labels() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}, {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {component: kube-apiserver}}}]}]}",
            expect![[r#"
                warning[apiserver] spec.egress[1].to[0].podSelector: component=kube-apiserver doesn't select the API server: the API server runs on its node's network, or outside of the cluster
                  allow the addresses and port of its endpoints by ipBlock: here 192.168.0.1:6443
            "#]],
        );
        // A namespaceSelector that matches nothing is reported first.
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}, {to: [{namespaceSelector: {matchLabels: {name: kube-system}}, podSelector: {matchLabels: {component: kube-apiserver}}}]}]}",
            expect![[r#"
                warning[ns-label] spec.egress[1].to[0].namespaceSelector: namespace kube-system has no label name=kube-system; it has kubernetes.io/metadata.name=kube-system
                  select the namespace by the label that every namespace has:
                  - namespaceSelector:
                      matchLabels: {kubernetes.io/metadata.name: kube-system}
                    podSelector:
                      matchLabels: {component: kube-apiserver}
            "#]],
        );
    }
}
