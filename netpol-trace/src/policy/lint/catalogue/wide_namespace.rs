//! `namespaceSelector: {}` together with a podSelector, for ingress: a label that anybody can give a pod opens the door.

use crate::model::Str;
use crate::model::cluster::{Direction, Peer};
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{LintContext, RuleContext};
use crate::policy::lint::text::list;
use crate::policy::lint::yaml::peer_of_namespace_yaml;
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "wide-namespace",
    severity: Severity::Warning,
    title: "That pod from every namespace",
    what: "`namespaceSelector: {}` is every namespace: whoever may create a pod in any of them can give it the label.",
    fix: "Add a label of the namespaces that are meant.",
    check: |context, findings| {
        // Egress to a label in any namespace is how DNS is often allowed; for ingress the server decides who comes in.
        for rule in context.rules().filter(|rule| rule.direction == Direction::Ingress) {
            findings.extend(rule.peers().filter_map(|(i, peer)| finding(context, &rule, i, peer)));
        }
    },
};

fn finding(context: &LintContext<'_>, rule: &RuleContext<'_>, item: usize, peer: &Peer) -> Option<LintFinding> {
    let Peer::Pods { namespaces: Some(namespaces), pods: Some(pods) } = peer else { return None };
    if !namespaces.is_everything() || pods.is_everything() {
        return None;
    }
    let own = &rule.policy.policy.namespace;
    let matching = context.peers(rule.policy.policy, peer).map(|peers| peers.pods).unwrap_or_default();
    let mut others: Vec<Str> =
        matching.iter().map(|view| view.pod.namespace.clone()).filter(|name| name != own).collect();
    others.sort();
    others.dedup();
    let now = if others.is_empty() { String::new() } else { format!("; now also {pods} of {}", list(&others, 3)) };
    let message = format!(
        "a pod with {pods} gets in from EVERY namespace: whoever may create a pod anywhere can give it that label{now}"
    );
    let fix = format!(
        "name the namespaces that are meant, for example only this one:\n{}",
        peer_of_namespace_yaml(own, Some(pods))
    );
    Some(LINT.finding(rule.policy, &rule.peer_path(item), message, fix))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn a_label_in_any_namespace() {
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: vault}}}]}]}",
            expect![[r#"
                warning[wide-namespace] spec.ingress[0].from[0]: a pod with app=vault gets in from EVERY namespace: whoever may create a pod anywhere can give it that label; now also app=vault of bank
                  name the namespaces that are meant, for example only this one:
                  - namespaceSelector:
                      matchLabels: {kubernetes.io/metadata.name: shop}
                    podSelector:
                      matchLabels: {app: vault}
            "#]],
        );
        case(
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 5353, protocol: UDP}]}]}",
            expect![[""]],
        );
    }
}
