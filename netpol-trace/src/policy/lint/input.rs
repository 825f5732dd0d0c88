//! What the loader found: shapes that the API doesn't take, peers outside of `from` or `to`, names that come twice.

use crate::cluster::location::{Problem, ProblemKind};
use crate::cluster::manifests::Loaded;
use crate::cluster::yaml::{Path, Step};
use crate::policy::lint::{Finding, Severity, catalogue};

pub fn check(loaded: &Loaded, findings: &mut Vec<Finding>) {
    findings.extend(loaded.problems.iter().filter_map(finding));
}

fn finding(problem: &Problem) -> Option<Finding> {
    let path = Path::parse(&problem.place.field);
    let policy = problem.object.starts_with("NetworkPolicy");
    let (id, severity, message, fix) = match problem.kind {
        // The verb reports it and exits with 2: nothing was linted there.
        ProblemKind::Unreadable => return None,
        ProblemKind::Duplicate if policy => {
            let fix = "rename one of the two: rules of policies with different names add up, one name holds one policy";
            ("duplicate-name", problem.severity, problem.message.clone(), fix.to_owned())
        }
        ProblemKind::Duplicate => return None,
        ProblemKind::UnknownField => match stray_peer(&path) {
            Some((direction, list, field)) => {
                let who = if list == "to" { "to everyone" } else { "for everyone" };
                let message = format!(
                    "`{field}` is not in a `{list}:` list: where that unknown field is dropped, this {direction} rule has no \
                     peers and opens its ports {who} (kubectl refuses it)"
                );
                let value = problem.value.as_deref().unwrap_or("…");
                let fix = format!("put it into a list:\n- {list}:\n  - {field}: {value}\n  ports: …");
                ("missing-to", Severity::Error, message, fix)
            }
            // kubectl refuses it (strict validation); other clients lose the field.
            None if policy => ("shape", Severity::Error, problem.message.clone(), unknown_fix(&path)),
            None => ("shape", problem.severity, problem.message.clone(), unknown_fix(&path)),
        },
        ProblemKind::Syntax => (
            "shape",
            Severity::Error,
            problem.message.clone(),
            "correct the text; nothing of this document is used".to_owned(),
        ),
        ProblemKind::Shape if problem.message.contains("ICMP") => {
            let fix = catalogue::entry("icmp").map_or("", |entry| entry.fix);
            ("icmp", Severity::Error, problem.message.clone(), fix.to_owned())
        }
        ProblemKind::Shape => {
            let field =
                if problem.place.field.is_empty() { String::new() } else { format!("{}: ", problem.place.field) };
            ("shape", problem.severity, format!("{field}{}", problem.message), shape_fix(&path, &problem.message))
        }
    };
    Some(Finding { id, severity, place: problem.place.clone(), object: problem.object.clone(), message, fix })
}

/// A peer's field where a rule's belongs: `spec.egress[0].namespaceSelector`.
fn stray_peer(path: &Path) -> Option<(&str, &'static str, &str)> {
    match path.0.as_slice() {
        [Step::Field(spec), Step::Field(direction), Step::Index(_), Step::Field(field)] if spec == "spec" => {
            let list = match direction.as_str() {
                "ingress" => "from",
                "egress" => "to",
                _ => return None,
            };
            let peer = matches!(field.as_str(), "namespaceSelector" | "podSelector" | "ipBlock");
            peer.then_some((direction.as_str(), list, field.as_str()))
        }
        _ => None,
    }
}

fn unknown_fix(path: &Path) -> String {
    let last = path.0.last().and_then(|step| match step {
        Step::Field(name) => Some(name.as_str()),
        Step::Index(_) => None,
    });
    let direction = path.0.get(1).and_then(|step| match step {
        Step::Field(name) => Some(name.as_str()),
        Step::Index(_) => None,
    });
    match (direction, last) {
        (Some("egress"), Some("from")) => return "an egress rule's peers are `to:`".to_owned(),
        (Some("ingress"), Some("to")) => return "an ingress rule's peers are `from:`".to_owned(),
        _ => {}
    }
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
    let name = last.unwrap_or_default();
    let alike = FIELDS.iter().map(|field| (strsim::levenshtein(&field.to_lowercase(), &name.to_lowercase()), field));
    match alike.min().filter(|(distance, _)| *distance <= 3) {
        Some((_, field)) => {
            format!("write `{field}`, or remove it; `kubectl explain networkpolicy.spec` shows the fields")
        }
        None => "remove it, or move it to where it belongs; `kubectl explain networkpolicy.spec` shows the fields"
            .to_owned(),
    }
}

fn shape_fix(path: &Path, message: &str) -> String {
    let last = path.0.last();
    let rules = |name: &str| last == Some(&Step::Field(name.to_owned()));
    if message.contains("found a mapping, expected a list") && (rules("ingress") || rules("egress")) {
        let field = if rules("ingress") { "ingress" } else { "egress" };
        return format!(
            "it is a list of rules: `{field}: []` allows nothing, `{field}: [{{}}]` allows everything, one rule starts with `- `"
        );
    }
    if message.contains("found a mapping, expected a list") {
        return "put each item on a line that starts with `- `".to_owned();
    }
    "correct it; the API server refuses the object as it is".to_owned()
}
