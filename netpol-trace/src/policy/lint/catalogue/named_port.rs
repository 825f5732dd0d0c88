//! A port name that no destination pod declares.

use crate::cluster::index::PodView;
use crate::model::cluster::{PortMatch, PortSpec};
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::ports::{declared_text, destinations};

pub static LINT: Lint = Lint {
    id: "named-port",
    severity: Severity::Warning,
    title: "No such named port on the pods",
    what: "A named port is looked up on the destination pods, by name and protocol; a pod without it is not reached.",
    fix: "Use a name that the pods declare, or the number.",
    check: |context, findings| {
        for rule in context.rules() {
            let named = rule.ports().filter(|(_, port)| matches!(port.port, PortSpec::Named(_)));
            for (i, port) in named {
                if let Some((message, fix)) = mistake(port, &destinations(context, &rule)) {
                    findings.push(LINT.finding(rule.policy, &format!("{}.port", rule.port_path(i)), message, fix));
                }
            }
        }
    },
};

fn mistake(port: &PortMatch, pods: &[PodView<'_>]) -> Option<(String, String)> {
    let PortSpec::Named(name) = &port.port else { return None };
    let same_name = || pods.iter().flat_map(|view| view.pod.ports.iter()).filter(|p| p.name.as_ref() == Some(name));
    let mut matching = same_name().filter(|p| p.protocol == port.protocol);
    if pods.is_empty() || matching.clone().any(|p| !p.sidecar) {
        return None;
    }
    if let Some(sidecar) = matching.next() {
        let message = format!(
            "only a sidecar (an init container with restartPolicy Always) declares port {name}: older plugins don't look there"
        );
        return Some((message, format!("write the number: {}", sidecar.port)));
    }
    let fix = match same_name().next() {
        Some(other) => {
            format!("{name} is {}/{} there: write `protocol: {}`", other.port, other.protocol, other.protocol)
        }
        None => "write a name that the pods declare, or the number".to_owned(),
    };
    let declared = declared_text(pods);
    Some((format!("no destination pod has a port {name}/{}: the pods declare {declared}", port.protocol), fix))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn no_pod_declares_the_name() {
        case(
            "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: web}]}]}",
            expect![[r#"
            warning[named-port] spec.ingress[0].ports[0].port: no destination pod has a port web/TCP: the pods declare http=8080/TCP
              write a name that the pods declare, or the number
        "#]],
        );
        case(
            "{podSelector: {matchLabels: {app: syslog}}, ingress: [{ports: [{port: syslog}]}]}",
            expect![[r#"
            warning[named-port] spec.ingress[0].ports[0].port: no destination pod has a port syslog/TCP: the pods declare syslog=514/UDP
              syslog is 514/UDP there: write `protocol: UDP`
        "#]],
        );
    }

    #[test]
    fn only_a_sidecar_declares_the_name() {
        case(
            "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: admin}]}]}",
            expect![[r#"
            warning[named-port] spec.ingress[0].ports[0].port: only a sidecar (an init container with restartPolicy Always) declares port admin: older plugins don't look there
              write the number: 9901
        "#]],
        );
    }
}
