//! A rule for ICMP, which NetworkPolicy can't express.

use crate::cluster::location::{Problem, ProblemKind};
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::{Lint, shape};

pub static LINT: Lint = Lint {
    id: "icmp",
    severity: Severity::Error,
    title: "ICMP can't be expressed",
    what: "NetworkPolicy knows TCP, UDP and SCTP. What an isolated pod may do with ICMP depends on the CNI.",
    fix: "Remove the rule; test with a TCP connection instead of ping.",
    check: |context, findings| {
        for problem in context.loaded.problems.iter().filter(|problem| is_icmp(problem)) {
            let fix = "remove the rule; test with a TCP connection instead of ping".to_owned();
            findings.push(shape::finding(&LINT, problem, problem.message.clone(), fix));
        }
    },
};

pub fn is_icmp(problem: &Problem) -> bool {
    problem.kind == ProblemKind::Shape && problem.message.contains("ICMP")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn a_rule_for_icmp() {
        case(
            "{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}",
            expect![[r#"
            error[icmp] spec.ingress[0].ports[0].protocol: unknown protocol "ICMP": NetworkPolicy can't express ICMP, only TCP, UDP and SCTP
              remove the rule; test with a TCP connection instead of ping
        "#]],
        );
    }
}
