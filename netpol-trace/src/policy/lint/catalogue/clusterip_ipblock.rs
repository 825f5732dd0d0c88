//! An ipBlock of a service's cluster address, which policy never sees.

use crate::model::cluster::{Direction, Peer};
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::{Lint, apiserver};
use crate::policy::lint::yaml::labels_yaml;
use crate::policy::matching::NAME_LABEL;

pub static LINT: Lint = Lint {
    id: "clusterip-ipblock",
    severity: Severity::Warning,
    title: "An ipBlock of a service's cluster address",
    what: "By the time policy acts the destination is a backend pod: an ipBlock of the cluster IP matches nothing.",
    fix: "Select the pods behind the service.",
    check: |context, findings| {
        for rule in context.rules().filter(|rule| rule.direction == Direction::Egress) {
            for (i, peer) in rule.peers() {
                let Peer::Block { cidr, .. } = peer else { continue };
                let Some(service) = context.service_in(cidr) else { continue };
                if apiserver::is_api_server(&service.namespace, &service.name) {
                    continue;
                }
                let message = format!(
                    "{cidr} is the cluster IP of service {}/{}: policy sees the pod behind it, so this matches nothing",
                    service.namespace, service.name
                );
                let fix = match &service.selector {
                    Some(selector) => format!(
                        "select the service's pods, and allow their target port:\n- namespaceSelector:\n    \
                         matchLabels: {{{NAME_LABEL}: {}}}\n  podSelector:\n    matchLabels: {{{}}}",
                        service.namespace,
                        labels_yaml(selector.iter())
                    ),
                    None => "allow the addresses of the service's endpoints".to_owned(),
                };
                let path = format!("{}.ipBlock.cidr", rule.peer_path(i));
                findings.push(LINT.finding(rule.policy, &path, message, fix));
            }
        }
    },
};

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn a_services_address() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}, {to: [{ipBlock: {cidr: 10.96.0.2/32}}]}]}",
            expect![[r#"
                warning[clusterip-ipblock] spec.egress[1].to[0].ipBlock.cidr: 10.96.0.2/32 is the cluster IP of service shop/web: policy sees the pod behind it, so this matches nothing
                  select the service's pods, and allow their target port:
                  - namespaceSelector:
                      matchLabels: {kubernetes.io/metadata.name: shop}
                    podSelector:
                      matchLabels: {app: web}
            "#]],
        );
    }
}
