//! Clients by their address, behind a service that hides it.

use ipnet::IpNet;

use crate::cluster::Object;
use crate::cluster::manifests::Located;
use crate::model::cluster::{Direction, Peer};
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{LintContext, RuleContext};
use crate::policy::lint::{LintFinding, Severity};
use crate::policy::matching::selects;

pub static LINT: Lint = Lint {
    id: "snat-source",
    severity: Severity::Warning,
    title: "Clients come with another address",
    what: "Through a NodePort or LoadBalancer service the source address becomes a node's, unless externalTrafficPolicy is Local.",
    fix: "Set externalTrafficPolicy: Local on the service.",
    check: |context, findings| {
        for rule in context.rules().filter(|rule| rule.direction == Direction::Ingress) {
            for (i, peer) in rule.peers() {
                let Peer::Block { cidr, .. } = peer else { continue };
                findings.extend(finding(context, &rule, i, cidr));
            }
        }
    },
};

fn finding(context: &LintContext<'_>, rule: &RuleContext<'_>, item: usize, cidr: &IpNet) -> Option<LintFinding> {
    let node = context.index.nodes().any(|node| node.ips.iter().any(|ip| cidr.contains(ip)));
    if cidr.prefix_len() == 0 || node || context.index.in_pod_network(cidr.addr()) {
        return None;
    }
    let policy = rule.policy.policy;
    let subjects = context.subjects(policy);
    let hides = |located: &&Located| match &located.object {
        Object::Service(service) if service.namespace == policy.namespace && !located.source_kept => {
            let external = service.ports.iter().any(|port| port.node_port.is_some());
            external && subjects.iter().any(|view| selects(service, &view.pod.labels))
        }
        _ => false,
    };
    let located = context.loaded.objects.iter().find(hides)?;
    let Object::Service(service) = &located.object else { return None };
    let name = format!("{}/{}", service.namespace, service.name);
    let message = format!(
        "clients from {cidr} that come through service {name} arrive with a node's address: externalTrafficPolicy is not Local"
    );
    let fix = format!("set `externalTrafficPolicy: Local` on service {name} ({})", located.place);
    Some(LINT.finding(rule.policy, &format!("{}.ipBlock.cidr", rule.peer_path(item)), message, fix))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn a_service_hides_its_clients() {
        case(
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
            expect![[r#"
                warning[snat-source] spec.ingress[0].from[0].ipBlock.cidr: clients from 203.0.113.0/24 that come through service shop/web arrive with a node's address: externalTrafficPolicy is not Local
                  set `externalTrafficPolicy: Local` on service shop/web (x.yaml:16 (document 1))
            "#]],
        );
    }
}
