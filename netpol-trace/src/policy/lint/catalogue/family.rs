//! A default route of one address family only, on a cluster that has both.

use ipnet::IpNet;

use crate::model::cluster::{Direction, Peer};
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{DIRECTIONS, PolicyContext};
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "family",
    severity: Severity::Warning,
    title: "One address family only",
    what: "On a dual-stack cluster an IPv4 block does not cover IPv6, and the other way round.",
    fix: "Add the other family's block.",
    check: |context, findings| {
        if context.dual_stack {
            for at in &context.policies {
                findings.extend(DIRECTIONS.into_iter().filter_map(|direction| finding(at, direction)));
            }
        }
    },
};

fn finding(at: &PolicyContext<'_>, direction: Direction) -> Option<LintFinding> {
    let default_routes: Vec<(String, IpNet)> = at
        .rules(direction)
        .flat_map(|rule| rule.peers().map(move |(i, peer)| (rule, i, peer)))
        .filter_map(|(rule, i, peer)| match peer {
            Peer::Block { cidr, .. } if cidr.prefix_len() == 0 => {
                Some((format!("{}.ipBlock.cidr", rule.peer_path(i)), *cidr))
            }
            _ => None,
        })
        .collect();
    let (path, cidr) = default_routes.first()?;
    if default_routes.iter().any(|(_, other)| other.addr().is_ipv4() != cidr.addr().is_ipv4()) {
        return None;
    }
    let (this, other, missing) =
        if cidr.addr().is_ipv4() { ("IPv4", "IPv6", "::/0") } else { ("IPv6", "IPv4", "0.0.0.0/0") };
    let message =
        format!("{cidr} is {this} only, and pods here have {other} addresses too: over {other} nothing is allowed");
    let fix = format!("add an item `- ipBlock: {{cidr: \"{missing}\"}}`, with its own except list");
    Some(LINT.finding(at, path, message, fix))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn ipv4_only() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}, {to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}",
            expect![[r#"
                warning[family] spec.egress[1].to[0].ipBlock.cidr: 0.0.0.0/0 is IPv4 only, and pods here have IPv6 addresses too: over IPv6 nothing is allowed
                  add an item `- ipBlock: {cidr: "::/0"}`, with its own except list
            "#]],
        );
    }
}
