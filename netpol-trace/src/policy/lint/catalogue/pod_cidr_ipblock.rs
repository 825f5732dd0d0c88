//! An ipBlock of pod addresses: whether it matches pods depends on the CNI.

use ipnet::IpNet;

use crate::cluster::index::AddressOwner;
use crate::model::cluster::{Direction, Peer};
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{LintContext, RuleContext, is_address};
use crate::policy::lint::text::names;
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "pod-cidr-ipblock",
    severity: Severity::Warning,
    title: "An ipBlock of pod addresses",
    what: "Whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses.",
    fix: "Use namespaceSelector and podSelector.",
    check: |context, findings| {
        for rule in context.rules() {
            for (i, peer) in rule.peers() {
                let Peer::Block { cidr, except } = peer else { continue };
                findings.extend(finding(context, &rule, i, cidr, except));
            }
        }
    },
};

fn finding(
    context: &LintContext<'_>,
    rule: &RuleContext<'_>,
    item: usize,
    cidr: &IpNet,
    except: &[IpNet],
) -> Option<LintFinding> {
    // Another lint reports a service's address.
    if rule.direction == Direction::Egress && context.service_in(cidr).is_some() {
        return None;
    }
    let pod = match context.index.owner_of(cidr.addr()) {
        AddressOwner::Pod(view) if is_address(cidr) => Some(view),
        _ => None,
    };
    let mut networks = context.index.nodes().flat_map(|node| node.pod_cidrs.iter());
    let inside = pod.is_some() || networks.any(|network| network.contains(cidr));
    let mut networks = context.index.nodes().flat_map(|node| node.pod_cidrs.iter());
    let around = |network: &IpNet| cidr.contains(network) && !except.iter().any(|hole| hole.contains(network));
    // A default route is everybody; a block that happens to hold the pod network may well mean the company's.
    let holds = cidr.prefix_len() > 0 && networks.any(around);
    if !inside && !holds {
        return None;
    }
    let what = match pod {
        Some(view) => format!("{cidr} is the address that {} has now", names(&[view])),
        None if inside => format!("{cidr} lies in the pod network"),
        None => format!("{cidr} holds the pod network"),
    };
    let message = format!(
        "{what}: whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses"
    );
    let fix = "for pods use namespaceSelector and podSelector; keep ipBlock for addresses outside".to_owned();
    let severity = if inside { Severity::Warning } else { Severity::Info };
    let path = format!("{}.ipBlock.cidr", rule.peer_path(item));
    Some(LintFinding { severity, ..LINT.finding(rule.policy, &path, message, fix) })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn pod_addresses() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}, {to: [{ipBlock: {cidr: 10.1.0.4/32}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}",
            expect![[r#"
                warning[pod-cidr-ipblock] spec.egress[1].to[0].ipBlock.cidr: 10.1.0.4/32 is the address that bank/vault has now: whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses
                  for pods use namespaceSelector and podSelector; keep ipBlock for addresses outside
                info[pod-cidr-ipblock] spec.egress[1].to[1].ipBlock.cidr: 10.0.0.0/8 holds the pod network: whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses
                  for pods use namespaceSelector and podSelector; keep ipBlock for addresses outside
            "#]],
        );
    }
}
