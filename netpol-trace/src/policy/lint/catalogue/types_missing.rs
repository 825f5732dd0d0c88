//! `policyTypes` and the rules disagree: rules that do nothing, or a direction that is isolated without being meant.

use crate::model::cluster::Direction;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{DIRECTIONS, PolicyContext};
use crate::policy::lint::{LintFinding, Severity};
use crate::policy::type_name;

pub static LINT: Lint = Lint {
    id: "types-missing",
    severity: Severity::Warning,
    title: "policyTypes and rules disagree",
    what: "Rules of a direction that policyTypes doesn't list do nothing (some CNIs apply them all the same), and a direction without a type isolates nothing.",
    fix: "Write policyTypes, with each direction that is meant.",
    check: |context, findings| {
        for at in &context.policies {
            findings.extend(DIRECTIONS.into_iter().filter_map(|direction| finding(at, direction)));
        }
    },
};

fn finding(at: &PolicyContext<'_>, direction: Direction) -> Option<LintFinding> {
    let policy = at.policy;
    let field = format!("spec.{direction}");
    let (field, message, fix) = match (&policy.declared_types, direction, policy.rules(direction).len()) {
        (Some(types), _, rules @ 1..) if !types.contains(&direction) => {
            let name = type_name(direction);
            let (count, them) =
                if rules == 1 { ("the rule".to_owned(), "does") } else { (format!("these {rules} rules"), "do") };
            let message = format!(
                "policyTypes does not list {name}, so {count} {them} nothing: {direction} of these pods stays as it is \
                 (some CNIs apply such rules all the same)"
            );
            (&*field, message, "write `policyTypes: [Ingress, Egress]`, or remove the rules")
        }
        (None, Direction::Egress, 0) if at.located.has(&field) => {
            let message = "an empty egress list without policyTypes isolates nothing: egress stays open".to_owned();
            (&*field, message, "to deny egress write `policyTypes: [Ingress, Egress]`")
        }
        (None, Direction::Ingress, 0) if !policy.egress.is_empty() => {
            let message =
                "egress rules without policyTypes: the default isolates ingress too, and no rule allows ingress"
                    .to_owned();
            ("spec", message, "write `policyTypes: [Egress]`; or `[Ingress, Egress]` to deny ingress")
        }
        _ => return None,
    };
    Some(LINT.finding(at, field, message, fix.to_owned()))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn rules_without_their_type() {
        case(
            "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}",
            expect![[r#"
            warning[types-missing] spec.egress: policyTypes does not list Egress, so the rule does nothing: egress of these pods stays as it is (some CNIs apply such rules all the same)
              write `policyTypes: [Ingress, Egress]`, or remove the rules
        "#]],
        );
        case(
            "{podSelector: {}, policyTypes: [Ingress], egress: [{}, {ports: [{port: 1}]}]}",
            expect![[r#"
            warning[types-missing] spec.egress: policyTypes does not list Egress, so these 2 rules do nothing: egress of these pods stays as it is (some CNIs apply such rules all the same)
              write `policyTypes: [Ingress, Egress]`, or remove the rules
        "#]],
        );
    }

    #[test]
    fn no_types() {
        case(
            "{podSelector: {}, egress: []}",
            expect![[r#"
            warning[types-missing] spec.egress: an empty egress list without policyTypes isolates nothing: egress stays open
              to deny egress write `policyTypes: [Ingress, Egress]`
        "#]],
        );
        case(
            "{podSelector: {}, egress: [{}]}",
            expect![[r#"
            warning[types-missing] spec: egress rules without policyTypes: the default isolates ingress too, and no rule allows ingress
              write `policyTypes: [Egress]`; or `[Ingress, Egress]` to deny ingress
        "#]],
        );
    }
}
