//! A peer's field where a rule's belongs: `spec.egress[0].namespaceSelector`.

use crate::cluster::location::{Problem, ProblemKind};
use crate::cluster::yaml::{Path, Step};
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::{Lint, shape};

pub static LINT: Lint = Lint {
    id: "missing-to",
    severity: Severity::Error,
    title: "A peer outside of from or to",
    what: "A selector directly in a rule is no field of the API. Where it is dropped, the rule has no peers and allows everybody.",
    fix: "Put the peer into a `to:` (egress) or `from:` (ingress) list.",
    check: |context, findings| {
        for problem in &context.loaded.problems {
            let Some((direction, field)) = stray_peer(problem) else { continue };
            let (list, everyone) = if direction == "egress" { ("to", "to everyone") } else { ("from", "for everyone") };
            let message = format!(
                "`{field}` is not in a `{list}:` list: where that unknown field is dropped, this {direction} rule has no \
                 peers and opens its ports {everyone} (kubectl refuses it)"
            );
            let value = problem.value.as_deref().unwrap_or("…");
            let fix = format!("put it into a list:\n- {list}:\n  - {field}: {value}\n  ports: …");
            findings.push(shape::finding(&LINT, problem, message, fix));
        }
    },
};

/// The direction and the field of an unknown field that is a peer's.
pub fn stray_peer(problem: &Problem) -> Option<(String, String)> {
    let path = Path::parse(&problem.place.field);
    match path.0.as_slice() {
        [Step::Field(spec), Step::Field(direction), Step::Index(_), Step::Field(field)] => {
            let in_rule = spec == "spec" && matches!(direction.as_str(), "ingress" | "egress");
            let is_peer = matches!(field.as_str(), "namespaceSelector" | "podSelector" | "ipBlock");
            let stray = problem.kind == ProblemKind::UnknownField && in_rule && is_peer;
            stray.then(|| (direction.clone(), field.clone()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn a_selector_in_the_rule() {
        case(
            "{podSelector: {}, ingress: [{podSelector: {matchLabels: {app: web}}}]}",
            expect![[r#"
            error[missing-to] spec.ingress[0].podSelector: `podSelector` is not in a `from:` list: where that unknown field is dropped, this ingress rule has no peers and opens its ports for everyone (kubectl refuses it)
              put it into a list:
              - from:
                - podSelector: {matchLabels: {app: web}}
                ports: …
        "#]],
        );
    }
}
