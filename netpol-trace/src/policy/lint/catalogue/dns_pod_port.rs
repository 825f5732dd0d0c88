//! The DNS service forwards port 53 to another port of its pods.

use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::{Lint, svc_port};

pub static LINT: Lint = Lint {
    id: "dns-pod-port",
    severity: Severity::Warning,
    title: "The DNS pods listen on another port than 53",
    what: "Policy sees the pod's port, not the service's: where the DNS service forwards 53 to another port, a rule for 53 allows nothing.",
    fix: "Allow the DNS service's target port.",
    check: |context, findings| svc_port::check(&LINT, context, |port| port == 53, findings),
};

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn the_dns_services_port() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]}",
            expect![[r#"
                warning[dns-pod-port] spec.egress[0].ports[0].port: 53 is the port of service kube-system/kube-dns; its pods (kube-system/coredns) listen on 5353, and policy sees the pod's port
                  write `port: 5353`
                warning[dns-nodelocal] spec.egress[0].to: this cluster has NodeLocal DNSCache: pods query 169.254.20.10 on their node, which no selector matches
                  add to the list:
                  - ipBlock: {cidr: 169.254.20.10/32}
            "#]],
        );
    }
}
