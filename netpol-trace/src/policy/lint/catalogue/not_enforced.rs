//! The network plugin of the input applies no policies.

use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::Lint;

/// Parts of the names of DaemonSets that enforce policies, and may stand beside flannel.
const ENFORCERS: [&str; 9] =
    ["calico", "cilium", "canal", "kube-router", "antrea", "weave", "ovn", "aws-node", "network-polic"];

pub static LINT: Lint = Lint {
    id: "not-enforced",
    severity: Severity::Warning,
    title: "Nothing enforces policies here",
    what: "Policies are only objects until the network plugin applies them; this one doesn't.",
    fix: "Use a plugin with NetworkPolicy support.",
    check: |context, findings| {
        let has_daemon = |part: &str| {
            context.loaded.objects.iter().any(|located| {
                let (kind, _, name) = located.object.identity();
                matches!(kind, "DaemonSet" | "Pod") && name.contains(part)
            })
        };
        let Some(first) = context.policies.first() else { return };
        if has_daemon("flannel") && !ENFORCERS.iter().any(|part| has_daemon(part)) {
            let message = "the network plugin in this input is flannel, which applies no NetworkPolicy: no policy here has an effect";
            let fix = "run a plugin with NetworkPolicy support, for example Calico (canal), Cilium or kube-router's policy part";
            findings.push(LINT.finding(first, "", message.to_owned(), fix.to_owned()));
        }
    },
};

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::check;

    #[test]
    fn flannel_enforces_nothing() {
        check(
            "apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
spec: {template: {spec: {hostNetwork: true}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec: {podSelector: {}}
",
            expect![[r#"
                netpol.yaml:6: warning[not-enforced]: the network plugin in this input is flannel, which applies no NetworkPolicy: no policy here has an effect
                    in:  NetworkPolicy x/p
                    fix: run a plugin with NetworkPolicy support, for example Calico (canal), Cilium or kube-router's policy part

                1 warning (1 policy, 1 pod or workload, 1 file)
            "#]],
        );
    }
}
