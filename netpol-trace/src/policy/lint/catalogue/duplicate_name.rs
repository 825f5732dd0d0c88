//! Two policies of one name in the input: the last one applied replaces the first.

use crate::cluster::location::ProblemKind;
use crate::policy::lint::catalogue::{Lint, shape};
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "duplicate-name",
    severity: Severity::Warning,
    title: "Two policies of one name",
    what: "The last one applied replaces the whole first one. Rules of policies with different names add up.",
    fix: "Rename one of them.",
    check: |context, findings| {
        let duplicates = context.loaded.problems.iter().filter(|problem| problem.kind == ProblemKind::Duplicate);
        for problem in duplicates.filter(|problem| problem.is_policy) {
            // The loader reports the same object twice as a note.
            let fix = match problem.severity {
                Severity::Info => "remove one of the two",
                _ => "rename one of the two: rules of policies with different names add up, one name holds one policy",
            };
            let finding = shape::finding(&LINT, problem, problem.message.clone(), fix.to_owned());
            findings.push(LintFinding { severity: problem.severity, ..finding });
        }
    },
};

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::check;

    #[test]
    fn the_same_object_twice_is_a_note() {
        let policy = |spec: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {spec}\n"
            )
        };
        let (one, other) = (policy("{podSelector: {}, ingress: [{}]}"), policy("{podSelector: {}, ingress: []}"));
        check(
            &format!("{one}---\n{one}"),
            expect![[r#"
            netpol.yaml:8: info[duplicate-name]: the same object is at netpol.yaml:1 (document 1) already
                in:  NetworkPolicy a/p, metadata.name
                fix: remove one of the two

            1 info (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
        );
        check(
            &format!("{one}---\n{other}"),
            expect![[r#"
            netpol.yaml:8: warning[duplicate-name]: replaces the policy of the same name at netpol.yaml:1 (document 1): applied in this order, its 1 ingress and 0 egress rules are gone
                in:  NetworkPolicy a/p, metadata.name
                fix: rename one of the two: rules of policies with different names add up, one name holds one policy

            1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
        );
    }
}
