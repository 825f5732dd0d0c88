//! Labels that select a workload, and object names made of them.

use crate::model::Str;
use crate::model::cluster::{Labels, Operator, Pod, Requirement, Selector};
use crate::policy::matching::NAME_LABEL;

/// Labels that differ by pod or version: a selector with one of them matches nothing after the next rollout.
const UNSTABLE: [&str; 14] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "job-name",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "rollouts-pod-template-hash",
    "helm.sh/chart",
    "app.kubernetes.io/version",
    "version",
];

/// Whether a label with this key stays the same from one pod of the workload to the next, and from one release to the next.
pub fn is_stable(key: &str) -> bool {
    !UNSTABLE.contains(&key)
}

/// The labels that stay the same from one pod of the workload to the next, and from one release to the next.
pub fn stable(labels: &Labels) -> impl Iterator<Item = (&Str, &Str)> {
    labels.iter().filter(|(key, _)| is_stable(key))
}

/// A selector for the pod's workload; with no stable label, the empty one.
pub fn selector(pod: &Pod) -> Selector {
    Selector { requirements: stable(&pod.labels).map(|(key, value)| is(key, value)).collect() }
}

pub fn namespace_selector(name: &Str) -> Selector {
    Selector { requirements: [is(&NAME_LABEL.into(), name)].into() }
}

fn is(key: &Str, value: &Str) -> Requirement {
    Requirement { key: key.clone(), operator: Operator::In([value.clone()].into()) }
}

/// A name that the API accepts (RFC 1123 label): lower-case letters, digits and dashes, at most 63.
pub fn object_name(text: &str) -> String {
    const MAX: usize = 63;
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        let c = if c.is_ascii_alphanumeric() { c } else { '-' };
        if name.len() < MAX && !(c == '-' && (name.is_empty() || name.ends_with('-'))) {
            name.push(c);
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() { "suggested".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_versions_are_left_out() {
        let labels: Labels = [("app", "web"), ("pod-template-hash", "7d9c8"), ("app.kubernetes.io/version", "1.2")]
            .into_iter()
            .collect();
        assert_eq!(stable(&labels).map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["app=web"]);
    }

    #[test]
    fn names_the_api_takes() {
        assert_eq!(object_name("db-from-10.2.3.4"), "db-from-10-2-3-4");
        assert_eq!(object_name("Web::from_2001:db8::1"), "web-from-2001-db8-1");
        assert_eq!(object_name("-"), "suggested");
        assert_eq!(object_name(&"x".repeat(100)).len(), 63);
    }
}
