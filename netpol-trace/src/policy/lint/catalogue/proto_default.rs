//! A port without protocol is TCP, and the pods serve it over another protocol.

use crate::cluster::index::PodView;
use crate::model::cluster::{PortMatch, Protocol};
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::RuleContext;
use crate::policy::lint::ports::{declared, destinations, single};
use crate::policy::matching::covers;

pub static LINT: Lint = Lint {
    id: "proto-default",
    severity: Severity::Warning,
    title: "A port without protocol means TCP",
    what: "The traffic on that port is UDP or SCTP.",
    fix: "Write the protocol.",
    check: |context, findings| {
        for rule in context.rules() {
            for (i, port) in rule.ports() {
                let pods = destinations(context, &rule);
                let (Some(number), Some(protocol)) = (single(port), meant(&rule, port, &pods)) else { continue };
                let (why, fix) = if is_dns(&rule, number) {
                    (
                        "DNS clients use UDP first".to_owned(),
                        "list both:\n- {port: 53, protocol: UDP}\n- {port: 53, protocol: TCP}".to_owned(),
                    )
                } else {
                    (format!("the pods listen on {number}/{protocol}"), format!("write `protocol: {protocol}`"))
                };
                let message = format!("port {number} without protocol is {number}/TCP, and {why}");
                findings.push(LINT.finding(rule.policy, &rule.port_path(i), message, fix));
            }
        }
    },
};

/// The protocol that a port without one should have.
pub fn meant(rule: &RuleContext<'_>, port: &PortMatch, pods: &[PodView<'_>]) -> Option<Protocol> {
    let number = single(port).filter(|_| port.protocol_defaulted)?;
    let other = [Protocol::Udp, Protocol::Sctp].into_iter().find(|p| declared(pods, *p, number));
    match other {
        Some(protocol) if !declared(pods, Protocol::Tcp, number) && !is_listed(rule, protocol, number) => {
            Some(protocol)
        }
        _ => is_dns(rule, number).then_some(Protocol::Udp),
    }
}

fn is_dns(rule: &RuleContext<'_>, number: u16) -> bool {
    number == 53 && !is_listed(rule, Protocol::Udp, number)
}

/// Whether the rule lists the port with that protocol.
fn is_listed(rule: &RuleContext<'_>, protocol: Protocol, number: u16) -> bool {
    rule.ports().any(|(_, p)| p.protocol == protocol && covers(p, number))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn dns_without_udp() {
        case(
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53}]}]}",
            expect![[r#"
                warning[proto-default] spec.egress[0].ports[0]: port 53 without protocol is 53/TCP, and DNS clients use UDP first
                  list both:
                  - {port: 53, protocol: UDP}
                  - {port: 53, protocol: TCP}
            "#]],
        );
    }

    #[test]
    fn what_the_pods_listen_on() {
        case(
            "{podSelector: {matchLabels: {app: syslog}}, ingress: [{ports: [{port: 514}]}]}",
            expect![[r#"
            warning[proto-default] spec.ingress[0].ports[0]: port 514 without protocol is 514/TCP, and the pods listen on 514/UDP
              write `protocol: UDP`
        "#]],
        );
    }
}
