//! A namespaceSelector item beside a podSelector item: an OR where an AND was meant.

use crate::model::cluster::{Direction, Peer, Policy, Selector};
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{LintContext, RuleContext, namespace_matches};
use crate::policy::lint::text::names;
use crate::policy::lint::yaml::peer_yaml;
use crate::policy::lint::{LintFinding, Severity};
use crate::policy::matching::NAME_LABEL;

pub static LINT: Lint = Lint {
    id: "and-or",
    severity: Severity::Warning,
    title: "Two list items where one was meant",
    what: "Items of a from or to list are alternatives: a namespaceSelector item beside a podSelector item allows every pod of those namespaces.",
    fix: "Put namespaceSelector and podSelector into one item (one dash), or into two rules if both are meant.",
    check: |context, findings| findings.extend(context.rules().filter_map(|rule| finding(context, &rule))),
};

fn finding(context: &LintContext<'_>, rule: &RuleContext<'_>) -> Option<LintFinding> {
    let peers = rule.rule.peers.as_deref()?;
    let namespace_items = rule.peers().filter_map(|(i, peer)| match peer {
        Peer::Pods { namespaces: Some(selector), pods: None } => Some((i, selector)),
        _ => None,
    });
    for (i, namespaces) in namespace_items {
        let mut pod_items = rule.peers().filter_map(|(j, peer)| match peer {
            Peer::Pods { namespaces: None, pods: Some(selector) } if !selector.is_everything() => Some((j, selector)),
            _ => None,
        });
        // The items of one mistake stand side by side.
        let Some((j, pods)) = pod_items.find(|(j, _)| j.abs_diff(i) == 1) else { continue };
        let Some((severity, opened)) = suspicious(context, rule.policy.policy, namespaces, pods, peers.len()) else {
            continue;
        };
        let effect = if rule.direction == Direction::Ingress { "lets in" } else { "opens the way to" };
        let selected = match namespaces.is_everything() {
            true => "every namespace".to_owned(),
            false => format!("namespaces with {namespaces}"),
        };
        let message = format!(
            "{effect} EVERY pod of {selected}, not only {pods}: items {} and {} of the list are alternatives{opened}",
            i.min(j),
            i.max(j)
        );
        let fix = format!(
            "if a pod must match both, write one item (one dash):\n{}\nif either is enough, write two rules, which shows that it is meant",
            peer_yaml(Some(namespaces), Some(pods))
        );
        return Some(LintFinding { severity, ..LINT.finding(rule.policy, &rule.peers_path(), message, fix) });
    }
    None
}

/// How bad the OR is, and whom it lets in, where it looks like an AND that went wrong.
fn suspicious(
    context: &LintContext<'_>,
    policy: &Policy,
    namespaces: &Selector,
    pods: &Selector,
    items: usize,
) -> Option<(Severity, String)> {
    let own = context.namespace(&policy.namespace);
    let own_matches = own.and_then(|entry| namespace_matches(namespaces, &policy.namespace, entry));
    let matching = context.matching_namespaces(namespaces);
    let inside = matching.iter().flat_map(|(name, _)| context.pods(name));
    let (meant, extra): (Vec<_>, Vec<_>) = inside.partition(|view| pods.matches(&view.pod.labels));
    let opened = if extra.is_empty() { String::new() } else { format!(" (now also {})", names(&extra)) };
    if namespaces.is_everything() || own_matches == Some(true) {
        // The podSelector item adds nothing: its pods are in a namespace that is open already.
        return Some((Severity::Warning, opened));
    }
    let own_has = context.pods(&policy.namespace).iter().any(|view| pods.matches(&view.pod.labels));
    if !matching.is_empty() && own_matches == Some(false) {
        return match (meant.is_empty(), own_has) {
            // Pods have the label there and not here: the podSelector was meant for there.
            (false, false) if context.has_workloads(&policy.namespace) => Some((Severity::Warning, opened)),
            (false, _) => Some((Severity::Info, opened)),
            // Two sources, each with its own selector.
            (true, _) => None,
        };
    }
    if own_has || (own_matches == Some(false) && names_a_namespace(namespaces)) {
        return None;
    }
    // The namespaces' labels are not known. A namespace by its name beside pods of the policy's own is usual; a label
    // such as env=qa most often covers the policy's own namespace.
    let severity = if items == 2 && !names_a_namespace(namespaces) { Severity::Warning } else { Severity::Info };
    Some((severity, opened))
}

/// `kubernetes.io/metadata.name=x`, `name=x`: one namespace by its name.
fn names_a_namespace(selector: &Selector) -> bool {
    let by_name =
        |key: &str| key == NAME_LABEL || key == "name" || key.ends_with("/name") || key.ends_with("namespace");
    selector.requirements.iter().any(|r| by_name(&r.key))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn only_the_other_namespace_has_the_label() {
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}}, {podSelector: {matchLabels: {app: vault}}}]}]}",
            expect![[r#"
                warning[and-or] spec.ingress[0].from: lets in EVERY pod of namespaces with team=bank-team, not only app=vault: items 0 and 1 of the list are alternatives (now also bank/agent)
                  if a pod must match both, write one item (one dash):
                  - namespaceSelector:
                      matchLabels: {team: bank-team}
                    podSelector:
                      matchLabels: {app: vault}
                  if either is enough, write two rules, which shows that it is meant
                warning[no-match] spec.ingress[0].from[1].podSelector: podSelector app=vault matches no pod of shop; nearest: shop/db has app=db
                  such pods are in bank: add that namespace by the label that every namespace has:
                  - namespaceSelector:
                      matchLabels: {kubernetes.io/metadata.name: bank}
                    podSelector:
                      matchLabels: {app: vault}
            "#]],
        );
        case(
            "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {namespaceSelector: {}}]}]}",
            expect![[r#"
                warning[and-or] spec.ingress[0].from: lets in EVERY pod of every namespace, not only app=web: items 0 and 1 of the list are alternatives (now also bank/agent, bank/vault, kube-system/coredns and 3 more)
                  if a pod must match both, write one item (one dash):
                  - namespaceSelector: {}
                    podSelector:
                      matchLabels: {app: web}
                  if either is enough, write two rules, which shows that it is meant
            "#]],
        );
        // Two sources: a neighbour namespace, and pods of the policy's own.
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}}, {podSelector: {matchLabels: {app: web}}}]}]}",
            expect![[""]],
        );
    }
}
