//! Names, lists and nearest labels for messages.

use crate::cluster::index::PodView;
use crate::model::Str;
use crate::model::cluster::{Labels, Operator, Pod, Requirement, Selector};

/// `staging/db, staging/api and 3 more`.
pub fn names(pods: &[PodView<'_>]) -> String {
    let mut shown: Vec<String> = pods.iter().map(|view| format!("{}/{}", view.pod.namespace, view.pod.name)).collect();
    shown.dedup();
    list(&shown, 3)
}

/// The first `most` of a list, and how many more there are.
pub fn list<T: AsRef<str>>(items: &[T], most: usize) -> String {
    let shown: Vec<&str> = items.iter().take(most).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The pod that comes nearest to a selector, and its label that differs: `shop/web has app=web`.
pub fn nearest_pod(selector: &Selector, pods: &[PodView<'_>]) -> Option<String> {
    let missing = |pod: &Pod| selector.requirements.iter().filter(|r| !r.matches(&pod.labels)).count();
    let view = pods.iter().min_by_key(|view| {
        let first = selector.requirements.iter().find(|r| !r.matches(&view.pod.labels));
        let distance = first.and_then(|r| closest_label(r, &view.pod.labels)).map_or(1_000, |(distance, _)| distance);
        (missing(view.pod), distance, view.pod.name.clone())
    })?;
    let first = selector.requirements.iter().find(|r| !r.matches(&view.pod.labels))?;
    let label = match closest_label(first, &view.pod.labels) {
        Some((_, label)) => label,
        None if view.pod.labels.is_empty() => "no labels".to_owned(),
        None => {
            let labels: Vec<String> = view.pod.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            list(&labels, 4)
        }
    };
    Some(format!("{}/{} has {label}", view.pod.namespace, view.pod.name))
}

/// The label that a requirement nearly means, with its edit distance: its key with another value, or a key that is spelt alike.
pub fn closest_label(requirement: &Requirement, labels: &Labels) -> Option<(usize, String)> {
    let wanted = match &requirement.operator {
        Operator::In(values) => values.first(),
        _ => None,
    };
    let score = |key: &Str, value: &Str| {
        let keys = strsim::levenshtein(&requirement.key, key);
        let values = wanted.map_or(0, |wanted| strsim::levenshtein(wanted, value));
        let alike = keys <= 2 || (values == 0 && wanted.is_some());
        alike.then_some(keys * 2 + values)
    };
    let scored = labels.iter().filter_map(|(key, value)| Some((score(key, value)?, format!("{key}={value}"))));
    scored.min_by_key(|(score, _)| *score)
}
