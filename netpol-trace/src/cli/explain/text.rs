//! The result as text: the answer in one line, then the reasons.

use super::{Explained, ExplainedConnection, PolicyCheck};
use crate::model::{Side, VerdictResult};
use crate::policy;
use crate::policy::{ItemCheck, MatchResult, RuleCheck};
use crate::text::escape;

/// Items of a rule that are shown; a rule may have thousands.
const ITEMS_SHOWN: usize = 12;
pub(super) fn page(explained: &Explained) -> String {
    let mut page = TextPage::default();
    let Some(first) = explained.answers.first() else {
        let why = explained.why.as_deref().unwrap_or("nothing to evaluate");
        page.line(0, &format!("{}  {} -> {}: {why}", capital(explained.result), explained.from, explained.to));
        return page.0;
    };
    let all: usize = explained.answers.iter().map(|a| a.backends).sum();
    for answered in &explained.answers {
        if !std::ptr::eq(answered, first) {
            page.blank();
        }
        page.answer(explained, answered, all);
    }
    page.0
}

#[derive(Default)]
struct TextPage(String);

impl TextPage {
    /// Appends a line, with untrusted text escaped.
    fn line(&mut self, depth: usize, text: &str) {
        self.0 += &"  ".repeat(depth);
        self.0 += &escape(text);
        self.0.push('\n');
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }

    fn answer(&mut self, explained: &Explained, answered: &ExplainedConnection, all: usize) {
        let verdict = &answered.verdict;
        let service = explained.service.as_ref().map(|service| {
            let port = service.port.map(|p| format!(":{p}")).unwrap_or_default();
            let share = if all > 1 { format!(", {} of {all} backends", answered.backends) } else { String::new() };
            format!(" (service {}/{}{port}{share})", service.namespace, service.name)
        });
        self.line(
            0,
            &format!(
                "{}  {} -> {} {}{}: {}",
                capital(verdict.result),
                answered.from,
                answered.to,
                answered.port,
                service.unwrap_or_default(),
                policy::summary(&answered.verdict)
            ),
        );
        if let Some(hint) = &answered.hint {
            self.line(0, &format!("hint ({}): {}", hint.code, hint.message));
        }
        for note in answered.resolved.iter().chain(&verdict.notes) {
            self.line(0, &format!("note: {note}"));
        }
        self.blank();
        self.side("egress", &answered.from, answered.pods[0], &verdict.egress, &answered.egress);
        self.blank();
        self.side("ingress", &answered.to, answered.pods[1], &verdict.ingress, &answered.ingress);
    }

    fn side(&mut self, direction: &str, of: &str, pod: bool, side: &Side, policies: &[PolicyCheck]) {
        self.line(0, &format!("{direction} of {of}: {}", outcome(direction, pod, side)));
        for check in policies {
            if check.rules.is_empty() {
                self.line(1, &format!("{} isolates it and has no {direction} rules", check.policy));
            }
            for rule in &check.rules {
                self.rule(&check.policy, rule);
            }
        }
    }

    fn rule(&mut self, policy: &str, rule: &RuleCheck) {
        self.line(1, &format!("{policy} {}: {}", rule.rule, fit(rule.result)));
        self.items(&rule.peers, if rule.rule.starts_with("in") { "from: anyone" } else { "to: anywhere" });
        self.items(&rule.ports, "ports: any");
    }

    fn items(&mut self, items: &[ItemCheck], unrestricted: &str) {
        if items.is_empty() {
            self.line(2, unrestricted);
            return;
        }
        // Of many items, those that match are shown first.
        let fitting = items.iter().filter(|item| item.result != MatchResult::NoMatch);
        let missing = items.iter().filter(|item| item.result == MatchResult::NoMatch);
        let shown: Vec<&ItemCheck> = if items.len() > ITEMS_SHOWN {
            fitting.chain(missing).take(ITEMS_SHOWN).collect()
        } else {
            items.iter().collect()
        };
        for item in shown {
            match item.misses.as_slice() {
                [] => self.line(2, &format!("{} {}: {}", short(&item.field), item.wants, fit(item.result))),
                misses => {
                    let misses: Vec<_> = misses.iter().map(|m| short(&m.to_string()).to_owned()).collect();
                    self.line(2, &misses.join("; "));
                }
            }
        }
        if items.len() > ITEMS_SHOWN {
            self.line(2, &format!("and {} more", items.len() - ITEMS_SHOWN));
        }
    }
}

/// `ingress[0].from[1]…` without the rule, which is in the line above.
fn short(field: &str) -> &str {
    field.split_once("].").map_or(field, |(_, rest)| rest)
}

fn fit(fit: MatchResult) -> &'static str {
    match fit {
        MatchResult::Match => "matches",
        MatchResult::NoMatch => "does not match",
        MatchResult::Unknown => "unknown",
    }
}

fn capital(result: VerdictResult) -> &'static str {
    match result {
        VerdictResult::Allowed => "ALLOWED",
        VerdictResult::Denied => "DENIED",
        VerdictResult::Undetermined => "UNDETERMINED",
    }
}

fn outcome(direction: &str, pod: bool, side: &Side) -> String {
    match (side.result, &side.allowed_by) {
        (VerdictResult::Allowed, Some(by)) => format!("allowed by {} {}", by.policy, by.rule),
        (VerdictResult::Allowed, None) if !pod => "allowed, policies isolate pods only".to_owned(),
        (VerdictResult::Allowed, None) if side.isolated_by.is_empty() => {
            format!("allowed, no policy isolates it for {direction}")
        }
        (VerdictResult::Allowed, None) => "allowed, whatever the policies say".to_owned(),
        (VerdictResult::Denied, _) => "denied, no rule matches".to_owned(),
        (VerdictResult::Undetermined, _) => format!("undetermined: {}", side.why.as_deref().unwrap_or("not known")),
    }
}
