//! FTP and the RPC portmapper: a first port, then others that no rule can name in advance.

use crate::model::cluster::{PortMatch, PortSpec, Protocol};
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::RuleContext;
use crate::policy::lint::ports::single;

pub static LINT: Lint = Lint {
    id: "dynamic-ports",
    severity: Severity::Warning,
    title: "A protocol with data ports of its own",
    what: "FTP, RPC and NFSv3 open further connections on ports that no rule can name in advance.",
    fix: "Fix the data ports on the server and allow them with endPort.",
    check: |context, findings| {
        for rule in context.rules().filter(|rule| !has_range(rule)) {
            for (i, port) in rule.ports() {
                let (protocol, data) = match single(port) {
                    Some(21) if port.protocol == Protocol::Tcp => (
                        "FTP",
                        "passive mode's data ports (in active mode the server connects back: an ingress rule from its port 20)",
                    ),
                    Some(111) => {
                        ("the RPC portmapper (NFSv3)", "the ports that it hands out (mountd, nlockmgr, statd)")
                    }
                    _ => continue,
                };
                let message =
                    format!("{protocol} opens further connections, to {data}: this rule allows only the first");
                let fix = "fix the data ports on the server and list them: `{port: 30000, endPort: 30100}`; or use SFTP, NFSv4";
                let path = format!("{}.port", rule.port_path(i));
                findings.push(LINT.finding(rule.policy, &path, message, fix.to_owned()));
            }
        }
    },
};

fn has_range(rule: &RuleContext<'_>) -> bool {
    let range =
        |p: &PortMatch| matches!(p.port, PortSpec::Range(first, last) if last > first) || p.port == PortSpec::Any;
    rule.ports().any(|(_, port)| range(port))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn ftp() {
        case(
            "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 21}]}]}",
            expect![[r#"
            warning[dynamic-ports] spec.ingress[0].ports[0].port: FTP opens further connections, to passive mode's data ports (in active mode the server connects back: an ingress rule from its port 20): this rule allows only the first
              fix the data ports on the server and list them: `{port: 30000, endPort: 30100}`; or use SFTP, NFSv4
        "#]],
        );
        case(
            "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 21}, {port: 30000, endPort: 30100}]}]}",
            expect![[""]],
        );
    }
}
