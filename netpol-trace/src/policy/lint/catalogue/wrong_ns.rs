//! The pods that a policy selects are in another namespace.

use crate::model::cluster::{Policy, Selector};
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::LintContext;
use crate::policy::lint::text::list;

pub static LINT: Lint = Lint {
    id: "wrong-ns",
    severity: Severity::Warning,
    title: "The policy is in another namespace than the pods",
    what: "A policy selects pods of its own namespace only.",
    fix: "Move the policy to the pods' namespace.",
    check: |context, findings| {
        for at in context.policies.iter().filter(|at| subject_matches_nothing(context, at.policy)) {
            let (namespace, selector) = (&at.policy.namespace, &at.policy.subject);
            let elsewhere = elsewhere(context, selector);
            let Some(first) = elsewhere.first() else { continue };
            let message = format!(
                "podSelector {selector} matches no pod of namespace {namespace}, where the policy is; such pods are in {}",
                list(&elsewhere, 3)
            );
            let fix = format!("set metadata.namespace: {first}");
            findings.push(LINT.finding(at, "spec.podSelector", message, fix));
        }
    },
};

/// Whether the input has pods in the policy's namespace, and none that its podSelector matches.
pub fn subject_matches_nothing(context: &LintContext<'_>, policy: &Policy) -> bool {
    let (selector, pods) = (&policy.subject, context.pods(&policy.namespace));
    !selector.is_everything() && !pods.is_empty() && !pods.iter().any(|view| selector.matches(&view.pod.labels))
}

/// The namespaces that have pods, other than hostNetwork ones, which the selector matches.
pub fn elsewhere<'c>(context: &'c LintContext<'_>, selector: &Selector) -> Vec<&'c str> {
    let has = |name: &str| {
        let pods = context.pods(name);
        pods.iter().any(|view| !view.pod.host_network && selector.matches(&view.pod.labels))
    };
    let mut names: Vec<&str> = context.index.namespaces().map(|(name, _)| &**name).filter(|name| has(name)).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn pods_of_another_namespace() {
        case(
            "{podSelector: {matchLabels: {app: vault}}}",
            expect![[r#"
            warning[wrong-ns] spec.podSelector: podSelector app=vault matches no pod of namespace shop, where the policy is; such pods are in bank
              set metadata.namespace: bank
        "#]],
        );
    }
}
