//! A namespaceSelector with a label that the namespace does not have, most often `name`.

use crate::model::Str;
use crate::model::cluster::{Labels, Operator, Peer, Requirement, Selector};
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{LintContext, RuleContext};
use crate::policy::lint::text::{closest_label, list};
use crate::policy::lint::yaml::peer_of_namespace_yaml;
use crate::policy::lint::{LintFinding, Severity};
use crate::policy::matching::NAME_LABEL;

pub static LINT: Lint = Lint {
    id: "ns-label",
    severity: Severity::Warning,
    title: "The namespace doesn't have that label",
    what: "A namespaceSelector matches labels of Namespace objects, not their names; `name` is not set by Kubernetes.",
    fix: "Select `kubernetes.io/metadata.name`, which every namespace has.",
    check: |context, findings| {
        for rule in context.rules() {
            findings.extend(rule.peers().filter_map(|(i, peer)| finding(context, &rule, i, peer)));
        }
    },
};

fn finding(context: &LintContext<'_>, rule: &RuleContext<'_>, item: usize, peer: &Peer) -> Option<LintFinding> {
    let Peer::Pods { namespaces: Some(namespaces), pods } = peer else { return None };
    let (severity, namespace, message) = match mistake(context, namespaces)? {
        NamespaceMistake::LabelAbsent { requirement, namespace, labels } => {
            let own: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let message = format!("namespace {namespace} has no label {requirement}; it has {}", list(&own, 4));
            (Severity::Warning, namespace, message)
        }
        NamespaceMistake::NameLabel { requirement, namespace } => {
            let message = format!(
                "{requirement} is a label that Kubernetes doesn't set: it matches only namespaces that somebody has given it"
            );
            (Severity::Info, namespace, message)
        }
        NamespaceMistake::Misspelt { .. } => return None,
    };
    let fix = format!(
        "select the namespace by the label that every namespace has:\n{}",
        peer_of_namespace_yaml(namespace, pods.as_ref())
    );
    let path = format!("{}.namespaceSelector", rule.peer_path(item));
    Some(LintFinding { severity, ..LINT.finding(rule.policy, &path, message, fix) })
}

/// Why a namespaceSelector matches no namespace of the input.
pub enum NamespaceMistake<'c> {
    /// The value is a namespace's name, and that namespace does not have the label.
    LabelAbsent { requirement: &'c Requirement, namespace: &'c Str, labels: &'c Labels },
    /// The label `name`, of a namespace that the input does not have.
    NameLabel { requirement: &'c Requirement, namespace: &'c Str },
    /// Nearly a label that a namespace has.
    Misspelt { nearest: Str, label: String },
}

/// The mistake in a namespaceSelector that matches nothing; `None` where the input may just lack the namespace.
pub fn mistake<'c>(context: &'c LintContext<'_>, selector: &'c Selector) -> Option<NamespaceMistake<'c>> {
    if selector.is_everything() || !context.matching_namespaces(selector).is_empty() {
        return None;
    }
    selector.requirements.iter().find_map(|requirement| {
        let Operator::In(values) = &requirement.operator else { return None };
        let [namespace] = &**values else { return None };
        let labels = context.namespace(namespace).and_then(|entry| entry.labels());
        if let Some(labels) = labels.filter(|labels| &*requirement.key != NAME_LABEL && !requirement.matches(labels)) {
            return Some(NamespaceMistake::LabelAbsent { requirement, namespace, labels });
        }
        if &*requirement.key == "name" {
            return Some(NamespaceMistake::NameLabel { requirement, namespace });
        }
        let labelled = context.index.namespaces().filter_map(|(name, entry)| Some((name, entry.labels()?)));
        let near = labelled.filter_map(|(name, labels)| Some((closest_typo(requirement, labels)?, name.clone())));
        near.min().map(|((_, label), nearest)| NamespaceMistake::Misspelt { nearest, label })
    })
}

/// Only what is spelt nearly the same: another value is another namespace, which the input may not have.
fn closest_typo(requirement: &Requirement, labels: &Labels) -> Option<(usize, String)> {
    closest_label(requirement, labels).filter(|(distance, label)| *distance > 0 && *distance <= 2 && label.len() > 6)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn a_name_is_not_a_label() {
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: bank}}}]}]}",
            expect![[r#"
            warning[ns-label] spec.ingress[0].from[0].namespaceSelector: namespace bank has no label name=bank; it has kubernetes.io/metadata.name=bank, team=bank-team
              select the namespace by the label that every namespace has:
              - namespaceSelector:
                  matchLabels: {kubernetes.io/metadata.name: bank}
        "#]],
        );
        case(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: elsewhere}}}]}]}",
            expect![[r#"
                info[ns-label] spec.ingress[0].from[0].namespaceSelector: name=elsewhere is a label that Kubernetes doesn't set: it matches only namespaces that somebody has given it
                  select the namespace by the label that every namespace has:
                  - namespaceSelector:
                      matchLabels: {kubernetes.io/metadata.name: elsewhere}
            "#]],
        );
    }
}
