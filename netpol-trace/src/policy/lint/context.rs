//! Who matches what, for all checks: policies with their places over one index.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::Index;
use crate::cluster::Object;
use crate::cluster::index::{NamespaceEntry, PodView};
use crate::cluster::manifests::{Loaded, Located};
use crate::cluster::yaml::scalar_text;
use crate::model::Str;
use crate::model::cluster::{Direction, Labels, Operator, Peer, Pod, Policy, Requirement, Selector};
use crate::policy::lint::{Finding, Severity, catalogue};

/// The label that every namespace has.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub struct Context<'a> {
    pub loaded: &'a Loaded,
    pub index: Index,
    pub policies: Vec<PolicyContext<'a>>,
    /// Places in `policies`, by namespace.
    by_namespace: HashMap<Str, Vec<usize>>,
    /// Pods here have addresses of both families.
    pub dual_stack: bool,
}

/// A policy and its place.
pub struct PolicyContext<'a> {
    pub located: &'a Located,
    pub policy: &'a Policy,
}

/// The pods that a peer means, as far as the input shows.
pub struct Peers<'c> {
    /// The input shows the workloads of every namespace that is meant, and at least one.
    pub known: bool,
    pub namespaces: Vec<(Str, &'c NamespaceEntry)>,
    pub pods: Vec<PodView<'c>>,
}

impl<'a> Context<'a> {
    pub fn new(loaded: &'a Loaded) -> Context<'a> {
        let index = Index::from_objects(loaded.objects.iter().map(|located| located.object.clone()));
        let policies = loaded.objects.iter().filter_map(|located| match &located.object {
            Object::Policy(policy) => Some(PolicyContext { located, policy }),
            _ => None,
        });
        let policies: Vec<PolicyContext<'a>> = policies.collect();
        let mut by_namespace: HashMap<Str, Vec<usize>> = HashMap::new();
        for (i, at) in policies.iter().enumerate() {
            by_namespace.entry(at.policy.namespace.clone()).or_default().push(i);
        }
        let dual_stack = dual_stack(&index);
        Context { loaded, policies, by_namespace, dual_stack, index }
    }

    /// The policies of a namespace.
    pub fn policies_of(&self, namespace: &str) -> impl Iterator<Item = &PolicyContext<'a>> {
        self.by_namespace.get(namespace).into_iter().flatten().filter_map(|i| self.policies.get(*i))
    }

    pub fn namespace(&self, name: &str) -> Option<&NamespaceEntry> {
        self.index.namespace(name)
    }

    /// Pods and templates of a namespace, finished ones left out.
    pub fn pods(&self, namespace: &str) -> Vec<PodView<'_>> {
        let entry = self.index.namespace(namespace).into_iter();
        entry.flat_map(NamespaceEntry::pods).filter(|view| !view.pod.is_over()).collect()
    }

    /// The pods that a policy selects; hostNetwork pods can't be.
    pub fn subjects(&self, policy: &Policy) -> Vec<PodView<'_>> {
        let mut pods = self.pods(&policy.namespace);
        pods.retain(|view| !view.pod.host_network && policy.subject.matches(&view.pod.labels));
        pods
    }

    /// A rendered chart: workloads, and no object names a namespace (`helm install -n` does).
    pub fn is_chart(&self) -> bool {
        let mut objects = self.loaded.objects.iter().filter(|located| !located.object.identity().1.is_empty());
        let template = |object: &Object| matches!(object, Object::Pod(pod) if pod.template);
        self.loaded.objects.iter().any(|located| template(&located.object)) && objects.all(|l| l.namespace_defaulted)
    }

    /// Whether the input has this namespace's workloads.
    pub fn has_workloads(&self, namespace: &str) -> bool {
        !self.pods(namespace).is_empty()
    }

    /// The namespaces of the input that `selector` matches for certain.
    pub fn matching_namespaces(&self, selector: &Selector) -> Vec<(&Str, &NamespaceEntry)> {
        let mut found: Vec<_> = self
            .index
            .namespaces()
            .filter(|(name, entry)| namespace_matches(selector, name, entry) == Some(true))
            .collect();
        found.sort_by_key(|(name, _)| (*name).clone());
        found
    }

    /// The pods behind a selector peer; `None` for an ipBlock.
    pub fn peers(&self, policy: &Policy, peer: &Peer) -> Option<Peers<'_>> {
        let Peer::Pods { namespaces, pods } = peer else { return None };
        let namespaces: Vec<(Str, &NamespaceEntry)> = match namespaces {
            None => {
                let own = self.index.namespace(&policy.namespace);
                own.map(|entry| (policy.namespace.clone(), entry)).into_iter().collect()
            }
            Some(selector) => {
                self.matching_namespaces(selector).into_iter().map(|(name, entry)| (name.clone(), entry)).collect()
            }
        };
        let known = !namespaces.is_empty() && namespaces.iter().all(|(name, _)| self.has_workloads(name));
        let all = namespaces.iter().flat_map(|(_, entry)| entry.pods()).filter(|view| !view.pod.is_over());
        let pods = all.filter(|view| pods.as_ref().is_none_or(|selector| selector.matches(&view.pod.labels))).collect();
        Some(Peers { known, namespaces, pods })
    }

    /// Other policies of the namespace that isolate in `direction` and select all that `policy` selects.
    pub fn also_on_subjects<'c>(
        &'c self,
        policy: &'c Policy,
        direction: Direction,
    ) -> impl Iterator<Item = &'c PolicyContext<'a>> {
        let covers = move |other: &&PolicyContext<'a>| {
            other.policy.isolates(direction) && covers(&other.policy.subject, &policy.subject)
        };
        self.policies_of(&policy.namespace).filter(covers)
    }
}

impl PolicyContext<'_> {
    pub fn name(&self) -> String {
        format!("NetworkPolicy {}/{}", self.policy.namespace, self.policy.name)
    }

    /// A finding at a field of this policy.
    pub fn finding(&self, id: &'static str, field: &str, message: String, fix: String) -> Finding {
        let severity = catalogue::entry(id).map_or(Severity::Warning, |entry| entry.severity);
        Finding { id, severity, place: self.located.at(field), object: self.name(), message, fix }
    }

    /// Every rule of a direction that the policy isolates, with its path.
    pub fn rules(&self, direction: Direction) -> impl Iterator<Item = (String, &crate::model::cluster::Rule)> {
        let rules = if self.policy.isolates(direction) { self.policy.rules(direction) } else { &[] };
        rules.iter().enumerate().map(move |(i, rule)| (format!("spec.{direction}[{i}]"), rule))
    }
}

fn dual_stack(index: &Index) -> bool {
    let both = |v4: bool, v6: bool| v4 && v6;
    let nets = |nets: &[IpNet]| both(nets.iter().any(|n| n.addr().is_ipv4()), nets.iter().any(|n| n.addr().is_ipv6()));
    let ips = |ips: &[IpAddr]| both(ips.iter().any(IpAddr::is_ipv4), ips.iter().any(IpAddr::is_ipv6));
    index.nodes().any(|node| nets(&node.pod_cidrs))
        || index.namespaces().any(|(_, entry)| entry.pods().any(|view| !view.pod.host_network && ips(&view.pod.ips)))
}

/// Whether `selector` matches the namespace; `None` when the input doesn't have its labels.
pub fn namespace_matches(selector: &Selector, name: &Str, entry: &NamespaceEntry) -> Option<bool> {
    match entry.labels() {
        Some(labels) => Some(selector.matches(labels)),
        None => {
            let labels: Labels = [(NAME_LABEL, name.clone())].into_iter().map(|(k, v)| (Str::from(k), v)).collect();
            selector.requirements.iter().all(|r| &*r.key == NAME_LABEL).then(|| selector.matches(&labels))
        }
    }
}

/// Whether `wide` certainly matches all that `narrow` matches.
pub fn covers(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements.iter().all(|requirement| narrow.requirements.contains(requirement))
}

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

/// What a selector misses by: the pod that comes nearest, and its label that differs.
pub fn nearest(selector: &Selector, pods: &[PodView<'_>]) -> Option<String> {
    let missing = |pod: &Pod| selector.requirements.iter().filter(|r| !r.matches(&pod.labels)).count();
    let view = pods.iter().min_by_key(|view| {
        let first = selector.requirements.iter().find(|r| !r.matches(&view.pod.labels));
        let distance = first.and_then(|r| closest(r, &view.pod.labels)).map_or(1_000, |(distance, _)| distance);
        (missing(view.pod), distance, view.pod.name.clone())
    })?;
    let first = selector.requirements.iter().find(|r| !r.matches(&view.pod.labels))?;
    let label = match closest(first, &view.pod.labels) {
        Some((_, label)) => label,
        None if view.pod.labels.is_empty() => "no labels".to_owned(),
        None => {
            let labels: Vec<String> = view.pod.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            list(&labels, 4)
        }
    };
    Some(format!("{}/{} has {label}", view.pod.namespace, view.pod.name))
}

/// The label that a requirement nearly means: its key with another value, or a key that is spelt alike.
pub fn closest(requirement: &Requirement, labels: &Labels) -> Option<(usize, String)> {
    let wanted = match &requirement.operator {
        Operator::In(values) => values.first(),
        _ => None,
    };
    let score = |key: &Str, value: &Str| {
        let keys = strsim::levenshtein(&requirement.key, key);
        let values = wanted.map_or(0, |wanted| strsim::levenshtein(wanted, value));
        let alike = keys == 0 || keys <= 2 || (values == 0 && wanted.is_some());
        alike.then_some(keys * 2 + values)
    };
    let scored = labels.iter().filter_map(|(key, value)| Some((score(key, value)?, format!("{key}={value}"))));
    scored.min_by_key(|(score, _)| *score)
}

/// A selector as YAML, on lines of `indent` spaces, without its field name.
pub fn selector_yaml(selector: &Selector, indent: usize) -> String {
    if selector.is_everything() {
        return " {}".to_owned();
    }
    let (mut labels, mut expressions) = (Vec::new(), Vec::new());
    for Requirement { key, operator } in &selector.requirements {
        let key = scalar_text(key);
        let list = |values: &[Str]| values.iter().map(|v| scalar_text(v)).collect::<Vec<_>>().join(", ");
        match operator {
            Operator::In(values) if values.len() == 1 => labels.push(format!("{key}: {}", list(values))),
            Operator::In(values) => {
                expressions.push(format!("{{key: {key}, operator: In, values: [{}]}}", list(values)))
            }
            Operator::NotIn(values) => {
                expressions.push(format!("{{key: {key}, operator: NotIn, values: [{}]}}", list(values)));
            }
            Operator::Exists => expressions.push(format!("{{key: {key}, operator: Exists}}")),
            Operator::DoesNotExist => expressions.push(format!("{{key: {key}, operator: DoesNotExist}}")),
        }
    }
    let pad = " ".repeat(indent);
    let mut yaml = String::new();
    if !labels.is_empty() {
        yaml.push_str(&format!("\n{pad}matchLabels: {{{}}}", labels.join(", ")));
    }
    if !expressions.is_empty() {
        yaml.push_str(&format!("\n{pad}matchExpressions: [{}]", expressions.join(", ")));
    }
    yaml
}

/// A peer as one item of a list, its dash at `indent`.
pub fn peer_yaml(namespaces: Option<&Selector>, pods: Option<&Selector>, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let mut lines = Vec::new();
    for (field, selector) in [("namespaceSelector", namespaces), ("podSelector", pods)] {
        if let Some(selector) = selector {
            let dash = if lines.is_empty() { "- " } else { "  " };
            lines.push(format!("{pad}{dash}{field}:{}", selector_yaml(selector, indent + 4)));
        }
    }
    lines.join("\n")
}
