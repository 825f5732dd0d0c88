//! An object that is not what the API takes: syntax, types, values, unknown fields.

use crate::cluster::location::{Problem, ProblemKind};
use crate::cluster::yaml::{Path, Step};
use crate::policy::lint::catalogue::{Lint, icmp, missing_to};
use crate::policy::lint::{LintFinding, Severity};

const FIELDS: [&str; 19] = [
    "podSelector",
    "namespaceSelector",
    "ipBlock",
    "policyTypes",
    "ingress",
    "egress",
    "from",
    "to",
    "ports",
    "port",
    "endPort",
    "protocol",
    "matchLabels",
    "matchExpressions",
    "operator",
    "values",
    "cidr",
    "except",
    "namespace",
];

pub static LINT: Lint = Lint {
    id: "shape",
    severity: Severity::Error,
    title: "Not what the API takes",
    what: "The API server refuses the object, or drops the field.",
    fix: "Write it as the API has it; kubectl apply --dry-run=server checks it.",
    check: |context, findings| findings.extend(context.loaded.problems.iter().filter_map(shape)),
};

fn shape(problem: &Problem) -> Option<LintFinding> {
    let path = Path::parse(&problem.place.field);
    let (severity, message, fix) = match problem.kind {
        // The subcommand reports what can't be read and exits with 2: nothing of it was linted.
        ProblemKind::Unreadable | ProblemKind::Duplicate => return None,
        ProblemKind::UnknownField if missing_to::stray_peer(problem).is_some() => return None,
        ProblemKind::UnknownField => {
            // kubectl refuses it in a policy (strict validation); other clients lose the field.
            let severity = if problem.is_policy { Severity::Error } else { problem.severity };
            (severity, problem.message.clone(), unknown_fix(&path))
        }
        ProblemKind::Syntax => {
            let fix = "correct the text; nothing of this document is used".to_owned();
            (Severity::Error, problem.message.clone(), fix)
        }
        ProblemKind::Shape if icmp::is_icmp(problem) => return None,
        ProblemKind::Shape => {
            let message = match &*problem.place.field {
                "" => problem.message.clone(),
                field => format!("{field}: {}", problem.message),
            };
            (problem.severity, message, shape_fix(&path, &problem.message))
        }
    };
    Some(LintFinding { severity, ..finding(&LINT, problem, message, fix) })
}

/// A finding at the place of a problem that the loader found.
pub fn finding(lint: &Lint, problem: &Problem, message: String, fix: String) -> LintFinding {
    let severity = lint.severity;
    LintFinding { id: lint.id, severity, place: problem.place.clone(), object: problem.object.clone(), message, fix }
}

fn unknown_fix(path: &Path) -> String {
    let field = |step: Option<&Step>| match step {
        Some(Step::Field(name)) => name.clone(),
        _ => String::new(),
    };
    let (direction, name) = (field(path.0.get(1)), field(path.0.last()));
    match (direction.as_str(), name.as_str()) {
        ("egress", "from") => return "an egress rule's peers are `to:`".to_owned(),
        ("ingress", "to") => return "an ingress rule's peers are `from:`".to_owned(),
        _ => {}
    }
    let alike = FIELDS.iter().map(|field| (strsim::levenshtein(&field.to_lowercase(), &name.to_lowercase()), field));
    let fix = match alike.min().filter(|(distance, _)| *distance <= 3) {
        Some((_, field)) => format!("write `{field}`, or remove it"),
        None => "remove it, or move it to where it belongs".to_owned(),
    };
    fix + "; `kubectl explain networkpolicy.spec` shows the fields"
}

fn shape_fix(path: &Path, message: &str) -> String {
    if !message.contains("found a mapping, expected a list") {
        return "correct it; the API server refuses the object as it is".to_owned();
    }
    match path.0.last() {
        Some(Step::Field(field)) if matches!(field.as_str(), "ingress" | "egress") => format!(
            "it is a list of rules: `{field}: []` allows nothing, `{field}: [{{}}]` allows everything, one rule starts with `- `"
        ),
        _ => "put each item on a line that starts with `- `".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn fields_and_values_that_the_api_does_not_have() {
        case(
            "{podSelector: {}, polcyTypes: [Egress]}",
            expect![[r#"
            error[shape] spec.polcyTypes: unknown field "spec.polcyTypes": the API server drops or refuses it
              write `policyTypes`, or remove it; `kubectl explain networkpolicy.spec` shows the fields
        "#]],
        );
        case(
            "{podSelector: {}, policyTypes: [egress]}",
            expect![[r#"
            error[shape] spec.policyTypes[0]: spec.policyTypes[0]: unknown policy type "egress": expected Ingress or Egress
              correct it; the API server refuses the object as it is
        "#]],
        );
        case(
            "{podSelector: {}, egress: [{from: []}]}",
            expect![[r#"
            warning[types-missing] spec: egress rules without policyTypes: the default isolates ingress too, and no rule allows ingress
              write `policyTypes: [Egress]`; or `[Ingress, Egress]` to deny ingress
            error[shape] spec.egress[0].from: unknown field "spec.egress[0].from": the API server drops or refuses it
              an egress rule's peers are `to:`
        "#]],
        );
    }
}
