//! The rule has a service's port, and the pods behind the service listen on another.

use crate::model::cluster::{PortMatch, ServicePort, TargetPort};
use crate::policy::lint::catalogue::{Lint, proto_default};
use crate::policy::lint::context::{LintContext, RuleContext};
use crate::policy::lint::ports::{declared, destinations, single};
use crate::policy::lint::{LintFinding, Severity};
use crate::policy::matching::{covers, selects};

pub static LINT: Lint = Lint {
    id: "svc-port",
    severity: Severity::Warning,
    title: "The rule has the service's port, the pod listens on another",
    what: "Policy is applied to the pod's port, after the service's translation.",
    fix: "Write the target port.",
    check: |context, findings| check(&LINT, context, |port| port != 53, findings),
};

/// Appends the findings for service ports that `wanted` accepts.
pub fn check(lint: &Lint, context: &LintContext<'_>, wanted: fn(u16) -> bool, findings: &mut Vec<LintFinding>) {
    for rule in context.rules() {
        let numbered = rule.ports().filter(|(_, port)| single(port).is_some_and(wanted));
        findings.extend(numbered.filter_map(|(i, port)| finding(lint, context, &rule, i, port)));
    }
}

fn finding(
    lint: &Lint,
    context: &LintContext<'_>,
    rule: &RuleContext<'_>,
    item: usize,
    port: &PortMatch,
) -> Option<LintFinding> {
    let pods = destinations(context, rule);
    let number = single(port).filter(|number| !declared(&pods, port.protocol, *number))?;
    if proto_default::meant(rule, port, &pods).is_some() {
        return None;
    }
    for view in &pods {
        for service in view.namespace.services() {
            let Some(of) = service.ports.iter().find(|p| p.port == number && p.protocol == port.protocol) else {
                continue;
            };
            let target = match &of.target {
                TargetPort::Number(target) => Some(*target),
                TargetPort::Name(name) => {
                    let mut ports = view.pod.ports.iter().filter(|p| p.protocol == port.protocol);
                    ports.find(|p| p.name.as_ref() == Some(name)).map(|p| p.port)
                }
            };
            // Another service may forward this very number, and another rule item may list the target.
            let forwards = |p: &ServicePort| p.target == TargetPort::Number(number);
            let direct = view.namespace.services().any(|s| s.ports.iter().any(forwards));
            let selected = selects(service, &view.pod.labels);
            let Some(target) = target.filter(|target| selected && *target != number && !direct) else { continue };
            if rule.ports().any(|(_, p)| p.protocol == port.protocol && covers(p, target)) {
                continue;
            }
            let message = format!(
                "{number} is the port of service {}/{}; its pods ({}/{}) listen on {target}, and policy sees the pod's port",
                service.namespace, service.name, view.pod.namespace, view.pod.name
            );
            let path = format!("{}.port", rule.port_path(item));
            return Some(lint.finding(rule.policy, &path, message, format!("write `port: {target}`")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn the_services_port() {
        case(
            "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}",
            expect![[r#"
            warning[svc-port] spec.ingress[0].ports[0].port: 80 is the port of service shop/web; its pods (shop/web) listen on 8080, and policy sees the pod's port
              write `port: 8080`
        "#]],
        );
        case("{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}, {port: 80}]}]}", expect![[""]]);
    }
}
