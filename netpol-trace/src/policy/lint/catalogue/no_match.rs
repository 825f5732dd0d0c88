//! A selector that matches no pod or namespace of the input, which has such pods or a label spelt alike.

use crate::model::Str;
use crate::model::cluster::{Peer, Selector};
use crate::policy::lint::catalogue::ns_label::{self, NamespaceMistake};
use crate::policy::lint::catalogue::{Lint, apiserver, wrong_ns};
use crate::policy::lint::context::{LintContext, PolicyContext, RuleContext};
use crate::policy::lint::text::{list, nearest_pod};
use crate::policy::lint::yaml::peer_of_namespace_yaml;
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "no-match",
    severity: Severity::Warning,
    title: "A selector matches no pod",
    what: "A selector that matches nothing isolates nothing, or allows nobody.",
    fix: "Correct the label; the nearest one is shown.",
    check: |context, findings| {
        findings.extend(context.policies.iter().filter_map(|at| subject(context, at)));
        for rule in context.rules() {
            for (i, peer) in rule.peers() {
                let Peer::Pods { namespaces, pods } = peer else { continue };
                findings.extend(namespaces.as_ref().and_then(|selector| namespace(context, &rule, i, selector)));
                findings.extend(pods.as_ref().and_then(|selector| pod(context, &rule, i, peer, selector)));
            }
        }
    },
};

fn subject(context: &LintContext<'_>, at: &PolicyContext<'_>) -> Option<LintFinding> {
    let (namespace, selector) = (&at.policy.namespace, &at.policy.subject);
    let pods = context.pods(namespace);
    if !wrong_ns::subject_matches_nothing(context, at.policy) || !wrong_ns::elsewhere(context, selector).is_empty() {
        return None;
    }
    let nearest = nearest_pod(selector, &pods).map(|text| format!("; nearest: {text}")).unwrap_or_default();
    let message = format!("podSelector {selector} matches no pod of namespace {namespace}{nearest}");
    let fix = "correct the label, or remove the policy: it isolates nothing".to_owned();
    Some(LINT.finding(at, "spec.podSelector", message, fix))
}

fn namespace(
    context: &LintContext<'_>,
    rule: &RuleContext<'_>,
    item: usize,
    selector: &Selector,
) -> Option<LintFinding> {
    let NamespaceMistake::Misspelt { nearest, label } = ns_label::mistake(context, selector)? else { return None };
    let message = format!("namespaceSelector {selector} matches no namespace here; nearest: {nearest} has {label}");
    let fix = format!("write {}", label.replacen('=', ": ", 1));
    Some(LINT.finding(rule.policy, &format!("{}.namespaceSelector", rule.peer_path(item)), message, fix))
}

fn pod(
    context: &LintContext<'_>,
    rule: &RuleContext<'_>,
    item: usize,
    peer: &Peer,
    selector: &Selector,
) -> Option<LintFinding> {
    if selector.is_everything() || apiserver::is_meant(rule, selector) {
        return None;
    }
    let peers = context.peers(rule.policy.policy, peer).filter(|peers| peers.known && peers.pods.is_empty())?;
    let all: Vec<_> = peers.namespaces.iter().flat_map(|(name, _)| context.pods(name)).collect();
    let namespaces: Vec<&str> = peers.namespaces.iter().map(|(name, _)| &**name).collect();
    let nearest = nearest_pod(selector, &all).map(|text| format!("; nearest: {text}")).unwrap_or_default();
    let message = format!("podSelector {selector} matches no pod of {}{nearest}", list(&namespaces, 3));
    let own = matches!(peer, Peer::Pods { namespaces: None, .. });
    let mut elsewhere: Vec<&Str> = context
        .index
        .namespaces()
        .filter(|(name, _)| own && context.pods(name).iter().any(|view| selector.matches(&view.pod.labels)))
        .map(|(name, _)| name)
        .collect();
    elsewhere.sort_unstable();
    let fix = match elsewhere.first() {
        Some(namespace) => format!(
            "such pods are in {}: add that namespace by the label that every namespace has:\n{}",
            list(&elsewhere, 3),
            peer_of_namespace_yaml(namespace, Some(selector))
        ),
        None => "correct the label".to_owned(),
    };
    let path = format!("{}.podSelector", rule.peer_path(item));
    let finding = LINT.finding(rule.policy, &path, message, fix);
    // One chart is rarely all of its namespace: another may have the peer.
    let severity = if context.is_chart() { Severity::Info } else { finding.severity };
    Some(LintFinding { severity, ..finding })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn shows_the_nearest_label() {
        case(
            "{podSelector: {matchLabels: {app: wep}}}",
            expect![[r#"
            warning[no-match] spec.podSelector: podSelector app=wep matches no pod of namespace shop; nearest: shop/web has app=web
              correct the label, or remove the policy: it isolates nothing
        "#]],
        );
        case(
            "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {tier: back}}}]}]}",
            expect![[r#"
            warning[no-match] spec.ingress[0].from[0].podSelector: podSelector tier=back matches no pod of shop; nearest: shop/web has tier=front
              correct the label
        "#]],
        );
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}, podSelector: {matchLabels: {ap: vault}}}]}]}",
            expect![[r#"
                warning[no-match] spec.ingress[0].from[0].podSelector: podSelector ap=vault matches no pod of bank; nearest: bank/vault has app=vault
                  correct the label
            "#]],
        );
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-taem}}}]}]}",
            expect![[r#"
                warning[no-match] spec.ingress[0].from[0].namespaceSelector: namespaceSelector team=bank-taem matches no namespace here; nearest: bank has team=bank-team
                  write team: bank-team
            "#]],
        );
        // Another value is another namespace, which the input may not have.
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: logistics}}, podSelector: {matchLabels: {app: x}}}]}]}",
            expect![[""]],
        );
    }

    #[test]
    fn shows_the_namespace_that_has_such_pods() {
        case(
            "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: vault}}}]}]}",
            expect![[r#"
            warning[no-match] spec.ingress[0].from[0].podSelector: podSelector app=vault matches no pod of shop; nearest: shop/db has app=db
              such pods are in bank: add that namespace by the label that every namespace has:
              - namespaceSelector:
                  matchLabels: {kubernetes.io/metadata.name: bank}
                podSelector:
                  matchLabels: {app: vault}
        "#]],
        );
    }
}
