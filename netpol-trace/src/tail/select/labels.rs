//! Label selectors in the form of `kubectl get -l`.

use crate::model::cluster::{Operator, Requirement, Selector};
use crate::text::escape;

/// Parses `app=web,tier!=cache,env in (a,b),!canary`.
pub fn selector(text: &str) -> Result<Selector, String> {
    let requirements = split(text)?.into_iter().map(requirement).collect::<Result<Box<[_]>, _>>()?;
    if requirements.is_empty() {
        return Err("-l is empty: leave it out to see all pods".to_owned());
    }
    Ok(Selector { requirements })
}

/// Splits at the commas that are not inside parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).map_or_else(|| wrong(text, "a ) without its ("), Ok)?,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return wrong(text, "a ( without its )");
    }
    parts.push(&text[from..]);
    Ok(parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect())
}

fn wrong<T>(text: &str, why: &str) -> Result<T, String> {
    Err(format!("-l {}: {why}; examples: app=web, tier!=cache, env in (qa,staging), !canary", escape(text)))
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let one = |value: &str| -> Result<Box<[_]>, String> { Ok([word(text, value)?.into()].into()) };
    let made = |key: &str, operator| Ok(Requirement { key: word(text, key)?.into(), operator });
    if let Some((key, value)) = text.split_once("!=") {
        return made(key, Operator::NotIn(one(value)?));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return made(key, Operator::In(one(value)?));
    }
    if let Some(key) = text.strip_prefix('!') {
        return made(key, Operator::DoesNotExist);
    }
    let Some((before, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) else {
        return made(text, Operator::Exists);
    };
    let values = values.split(',').map(|value| Ok(word(text, value)?.into())).collect::<Result<Box<[_]>, String>>()?;
    match before.trim().rsplit_once(char::is_whitespace) {
        Some((key, "in")) => made(key, Operator::In(values)),
        Some((key, "notin")) => made(key, Operator::NotIn(values)),
        _ => wrong(text, "expected KEY in (…) or KEY notin (…)"),
    }
}

/// Checks a key or a value. What Kubernetes allows there needs no escape in JSON, so the prefilter can search for it.
fn word<'t>(whole: &str, text: &'t str) -> Result<&'t str, String> {
    let text = text.trim();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    if !text.bytes().all(allowed) {
        return wrong(whole, &format!("{} is not a label", escape(text)));
    }
    Ok(text)
}

/// Returns true if the selector selects an object with the labels that `label` returns.
pub fn matches<'l>(selector: &Selector, label: impl Fn(&str) -> Option<&'l str>) -> bool {
    selector.requirements.iter().all(|requirement| {
        let found = label(&requirement.key);
        match &requirement.operator {
            Operator::In(values) => found.is_some_and(|found| values.iter().any(|value| **value == *found)),
            Operator::NotIn(values) => found.is_none_or(|found| values.iter().all(|value| **value != *found)),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
        }
    })
}

/// Returns a value that every selected pod has.
pub(super) fn certain_value(selector: &Selector) -> Option<String> {
    selector.requirements.iter().find_map(|requirement| match &requirement.operator {
        Operator::In(values) if values.len() == 1 => Some(values[0].to_string()),
        _ => None,
    })
}
