//! Collects the namespaces, pods and labels that exist, to suggest one of them for a name that does not.

use std::collections::{BTreeMap, BTreeSet};

use super::select::{Selection, matches};
use crate::missing;
use crate::model::cluster::Selector;
use crate::record::read::RecordView;

/// Records whose names are collected. After that the prefilter can skip lines without parsing them.
pub const RECORDS: usize = 20_000;
/// Namespaces that are kept, and pods.
const PODS: usize = 10_000;

/// Pods with their labels, from records or from an API server.
#[derive(Debug, Default)]
pub struct KnownNames {
    /// Records whose names are still to be collected.
    left: usize,
    namespaces: BTreeSet<String>,
    pods: BTreeMap<(String, String), BTreeMap<String, String>>,
}

impl KnownNames {
    /// Collects the names in the first [`RECORDS`] records of a log, if they are `needed`.
    pub fn of_records(needed: bool) -> KnownNames {
        KnownNames { left: if needed { RECORDS } else { 0 }, ..KnownNames::default() }
    }

    /// Returns true if no more names are collected.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Adds the names in a record. If full, only those of a `selected` record.
    pub fn add_record(&mut self, record: &RecordView<'_>, selected: bool) {
        if self.is_full() && !selected {
            return;
        }
        self.left = self.left.saturating_sub(1);
        for end in record.endpoints() {
            if let Some(service) = &end.service {
                self.add_namespace(&service.namespace);
            }
            if let Some(pod) = &end.pod {
                let labels = pod.labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
                self.add_pod(&pod.namespace, &pod.name, labels);
            }
        }
    }

    pub fn add_namespace(&mut self, name: &str) {
        if self.namespaces.len() < PODS && !self.namespaces.contains(name) {
            self.namespaces.insert(name.to_owned());
        }
    }

    pub fn add_pod(&mut self, namespace: &str, name: &str, labels: impl Iterator<Item = (String, String)>) {
        self.add_namespace(namespace);
        let key = (namespace.to_owned(), name.to_owned());
        if self.pods.len() < PODS && !self.pods.contains_key(&key) {
            self.pods.insert(key, labels.collect());
        }
    }

    /// Returns a message for each selected name that does not exist, with the names that do.
    pub fn missing(&self, selection: &Selection) -> Vec<String> {
        if !selection.pods.is_empty() {
            let missing = selection.pods.iter().filter(|pod| !self.pods.contains_key(pod));
            return missing.map(|(namespace, name)| self.no_pod(namespace, name)).collect();
        }
        let namespace = selection.namespace.as_deref();
        let mut pods =
            self.pods.iter().filter(|((of, _), _)| namespace.is_none_or(|namespace| of == namespace)).peekable();
        let note = match (namespace, &selection.labels) {
            (Some(namespace), _) if pods.peek().is_none() => Some(self.no_pods(namespace)),
            (_, Some(selector)) => {
                let labels: Vec<_> = pods.map(|(_, labels)| labels).collect();
                let selected =
                    |labels: &&&BTreeMap<String, String>| matches(selector, |key| labels.get(key).map(|v| &**v));
                labels.iter().find(selected).is_none().then(|| no_labels(selector, namespace, &labels))
            }
            _ => None,
        };
        note.into_iter().collect()
    }

    fn no_pod(&self, namespace: &str, name: &str) -> String {
        if !self.namespaces.contains(namespace) {
            return self.no_pods(namespace);
        }
        let known = self.pods.keys().filter(|(of, _)| of == namespace).map(|(_, name)| name.clone());
        missing::named("pod", namespace, name, &known.collect::<Vec<_>>())
    }

    fn no_pods(&self, namespace: &str) -> String {
        if self.namespaces.contains(namespace) {
            return format!("no pods in namespace {namespace}");
        }
        missing::namespace(namespace, &self.namespaces.iter().cloned().collect::<Vec<_>>())
    }
}

/// `no pod with app=dbx in namespace staging; there are app=api, app=db`
fn no_labels(selector: &Selector, namespace: Option<&str>, pods: &[&BTreeMap<String, String>]) -> String {
    let keys: BTreeSet<&str> = selector.requirements.iter().map(|requirement| &*requirement.key).collect();
    let label = |(key, value): (&String, &String)| format!("{key}={value}");
    let all = || pods.iter().flat_map(|labels| labels.iter());
    let mut known: BTreeSet<String> = all().filter(|(key, _)| keys.contains(&***key)).map(label).collect();
    if known.is_empty() {
        known = all().map(label).collect();
    }
    let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    let known: Vec<String> = known.into_iter().collect();
    let known = missing::nearest(&selector.to_string(), &known);
    format!("no pod with {selector}{place}; there are {known}")
}

#[cfg(test)]
mod tests {
    use super::super::select::selector;
    use super::*;

    fn missing(change: impl FnOnce(&mut Selection)) -> Vec<String> {
        let mut names = KnownNames::default();
        for (namespace, name, app) in [("staging", "db-0", "db"), ("staging", "api-0", "api"), ("qa", "web-0", "web")] {
            names.add_pod(namespace, name, [("app".to_owned(), app.to_owned())].into_iter());
        }
        names.add_namespace("empty");
        let mut selection = Selection::default();
        change(&mut selection);
        names.missing(&selection)
    }

    #[test]
    fn a_missing_name_is_reported_with_the_names_that_exist() {
        let pod = |namespace: &str, name: &str| missing(|w| w.pods = vec![(namespace.into(), name.into())]);
        assert_eq!(pod("staging", "db-0"), [""; 0]);
        assert_eq!(pod("staging", "db-9"), ["no pod staging/db-9; staging has api-0, db-0"]);
        assert_eq!(pod("stagin", "db-0"), ["no namespace stagin; the namespaces are empty, qa, staging"]);
        assert_eq!(missing(|w| w.namespace = Some("qa".into())), [""; 0]);
        assert_eq!(missing(|w| w.namespace = Some("empty".into())), ["no pods in namespace empty"]);
        let labels = |text: &str, namespace: Option<&str>| {
            missing(|w| {
                w.labels = Some(selector(text).unwrap());
                w.namespace = namespace.map(str::to_owned);
            })
        };
        assert_eq!(labels("app=db", None), [""; 0]);
        assert_eq!(labels("app=db", Some("qa")), ["no pod with app=db in namespace qa; there are app=web"]);
        assert_eq!(labels("tier=x", None), ["no pod with tier=x; there are app=api, app=db, app=web"]);
    }
}
