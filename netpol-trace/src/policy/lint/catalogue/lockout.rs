//! Both directions denied, and no policy allows anything to or from any of the pods.

use crate::model::cluster::Policy;
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{DIRECTIONS, LintContext, covers};
use crate::policy::lint::text::names;
use crate::policy::lint::yaml::allow_dns_policy;

pub static LINT: Lint = Lint {
    id: "lockout",
    severity: Severity::Warning,
    title: "Nothing can reach these pods and they can reach nothing",
    what: "They are isolated in both directions and no policy allows anything.",
    fix: "Add the needed allows: DNS first, then each peer.",
    check: |context, findings| {
        for at in context.policies.iter().filter(|at| locks_out(context, at.policy)) {
            let (policy, subjects) = (at.policy, context.subjects(at.policy));
            let pods = match (policy.subject.is_everything(), subjects.is_empty()) {
                (true, _) => format!("every pod of namespace {}", policy.namespace),
                (false, true) => format!("the pods with {}", policy.subject),
                (false, false) => names(&subjects),
            };
            let message =
                format!("denies {pods} all ingress and egress, DNS included, and no policy here allows them anything");
            let fix =
                format!("add policies that allow what is needed; DNS first:\n{}", allow_dns_policy(context, policy));
            findings.push(LINT.finding(at, "spec", message, fix));
        }
    },
};

/// Whether `policy` denies both directions, and no other policy allows any of its pods anything.
pub fn locks_out(context: &LintContext<'_>, policy: &Policy) -> bool {
    if !DIRECTIONS.into_iter().all(|d| policy.isolates(d) && policy.rules(d).is_empty()) {
        return false;
    }
    let subjects = context.subjects(policy);
    !context.policies_of(&policy.namespace).any(|other| {
        let other = other.policy;
        let allows = DIRECTIONS.into_iter().any(|d| other.isolates(d) && !other.rules(d).is_empty());
        // Where the pods are not known, any overlap counts.
        let overlaps =
            subjects.is_empty() && (policy.subject.is_everything() || covers(&other.subject, &policy.subject));
        let selects = subjects.iter().any(|view| other.subject.matches(&view.pod.labels));
        allows && (overlaps || selects)
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::check;

    #[test]
    fn every_direction_of_every_pod() {
        let deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: a}\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}\n";
        check(
            deny,
            expect![[r#"
            netpol.yaml:4: warning[lockout]: denies every pod of namespace a all ingress and egress, DNS included, and no policy here allows them anything
                in:  NetworkPolicy a/deny, spec
                fix: add policies that allow what is needed; DNS first:
                     apiVersion: networking.k8s.io/v1
                     kind: NetworkPolicy
                     metadata:
                       name: allow-dns
                       namespace: a
                     spec:
                       podSelector: {}
                       policyTypes: [Egress]
                       egress:
                       - to:
                         - namespaceSelector:
                             matchLabels: {kubernetes.io/metadata.name: kube-system}
                           podSelector:
                             matchLabels: {k8s-app: kube-dns}
                         ports:
                         - {protocol: UDP, port: 53}
                         - {protocol: TCP, port: 53}

            1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
        );
        let allow = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: allow, namespace: a}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{}]}\n";
        check(
            &format!("{deny}{allow}"),
            expect![[r#"
            nothing found (2 policies, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
        );
    }
}
