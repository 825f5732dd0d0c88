//! A verdict in one line, for people.

use crate::model::{Side, Verdict, VerdictResult};

const POLICIES_NAMED: usize = 3;

/// The policies or rules that decided, in one line: `egress by staging/test-np (no egress rule)`.
pub fn summary(verdict: &Verdict) -> String {
    let sides = [("egress", &verdict.egress), ("ingress", &verdict.ingress)];
    let side_text = |(direction, side): (&str, &Side)| match verdict.result {
        VerdictResult::Denied if side.result == VerdictResult::Denied => Some(denied_by(direction, side)),
        VerdictResult::Undetermined if side.result == VerdictResult::Undetermined => {
            Some(format!("{direction}: {}", side.why.as_deref().unwrap_or("not known")))
        }
        VerdictResult::Allowed => Some(match &side.allowed_by {
            Some(by) => format!("{direction} by {} {}", by.policy, by.rule),
            None if side.isolated_by.is_empty() => format!("{direction} not isolated"),
            None => format!("{direction} always allowed"),
        }),
        _ => None,
    };
    sides.into_iter().filter_map(side_text).collect::<Vec<_>>().join("; ")
}

fn denied_by(direction: &str, side: &Side) -> String {
    let mut names: Vec<String> = side.isolated_by.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
    let more = names.len().saturating_sub(POLICIES_NAMED);
    names.truncate(POLICIES_NAMED);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let nearest = match &side.nearest {
        None => String::new(),
        Some(nearest) if nearest.rule.is_none() => format!(" (no {direction} rule)"),
        Some(nearest) => {
            let misses: Vec<_> = nearest.misses.iter().map(ToString::to_string).collect();
            let whose = if side.isolated_by.len() > 1 { format!("{} ", nearest.policy) } else { String::new() };
            format!(" (nearest: {whose}{})", misses.join("; "))
        }
    };
    format!("{direction} by {}{nearest}", names.join(", "))
}
