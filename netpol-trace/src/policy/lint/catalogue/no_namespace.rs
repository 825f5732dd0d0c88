//! A default deny without `metadata.namespace`: it isolates one namespace, and perhaps not the one that was meant.

use crate::model::cluster::Policy;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::DIRECTIONS;
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "no-namespace",
    severity: Severity::Warning,
    title: "A default deny without a namespace",
    what: "A policy isolates the pods of one namespace: the one it is applied to, here kubectl's current one, whatever that is.",
    fix: "Write metadata.namespace, one policy per namespace; for the whole cluster use a cluster-wide policy API.",
    check: |context, findings| {
        // `helm install -n` gives a chart its namespace.
        let severity = if context.is_chart() { Severity::Info } else { Severity::Warning };
        for at in context.policies.iter().filter(|at| at.located.namespace_defaulted && denies_all(at.policy)) {
            let message = "no metadata.namespace: this default deny isolates one namespace, kubectl's current one (taken here \
                           as `default`), not the cluster";
            let fix = "write metadata.namespace, one such policy for each namespace; for all namespaces at once use a \
                       cluster-wide policy API (ClusterNetworkPolicy, GlobalNetworkPolicy, CiliumClusterwideNetworkPolicy)";
            let finding = LINT.finding(at, "metadata", message.to_owned(), fix.to_owned());
            findings.push(LintFinding { severity, ..finding });
        }
    },
};

/// Whether a policy denies every pod all of a direction.
fn denies_all(policy: &Policy) -> bool {
    policy.subject.is_everything() && DIRECTIONS.into_iter().any(|d| policy.isolates(d) && policy.rules(d).is_empty())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::check;

    #[test]
    fn a_default_deny_without_a_namespace() {
        check(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {}}
",
            expect![[r#"
                netpol.yaml:3: warning[no-namespace]: no metadata.namespace: this default deny isolates one namespace, kubectl's current one (taken here as `default`), not the cluster
                    in:  NetworkPolicy default/deny, metadata
                    fix: write metadata.namespace, one such policy for each namespace; for all namespaces at once use a cluster-wide policy API (ClusterNetworkPolicy, GlobalNetworkPolicy, CiliumClusterwideNetworkPolicy)

                1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
            "#]],
        );
    }
}
