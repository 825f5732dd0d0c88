//! What every check reads: the policies with their source lines, over one index of the input.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::Index;
use crate::cluster::Object;
use crate::cluster::index::{NamespaceEntry, PodView};
use crate::cluster::manifests::{Loaded, Located};
use crate::model::Str;
use crate::model::cluster::{Direction, Labels, Peer, Policy, PortMatch, Rule, Selector, Service};
use crate::policy::matching::NAME_LABEL;

pub const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

pub struct LintContext<'a> {
    pub loaded: &'a Loaded,
    pub index: Index,
    pub policies: Vec<PolicyContext<'a>>,
    /// Positions in `policies`, by namespace.
    by_namespace: HashMap<Str, Vec<usize>>,
    /// Pods here have addresses of both families.
    pub dual_stack: bool,
}

/// A policy and the lines of its fields.
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

impl<'a> LintContext<'a> {
    pub fn new(loaded: &'a Loaded) -> LintContext<'a> {
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
        LintContext { loaded, policies, by_namespace, dual_stack, index }
    }

    /// Every rule of every policy, in the directions that the policy isolates.
    pub fn rules(&self) -> impl Iterator<Item = RuleContext<'_>> {
        self.policies.iter().flat_map(|policy| DIRECTIONS.into_iter().flat_map(|direction| policy.rules(direction)))
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

    /// The service whose cluster IP lies in `cidr`, where that is small enough to be meant as an address.
    pub fn service_in(&self, cidr: &IpNet) -> Option<&Service> {
        if !is_address(cidr) {
            return None;
        }
        let services = self.index.namespaces().flat_map(|(_, entry)| entry.services());
        // The first address of a service is its cluster IP; the others may be real.
        let inside = services.filter(|service| service.ips.first().is_some_and(|ip| cidr.contains(ip)));
        inside.map(|service| &**service).min_by_key(|service| (&service.namespace, &service.name))
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
        let namespaces = self.index.namespaces();
        let mut matching: Vec<_> =
            namespaces.filter(|(name, entry)| namespace_matches(selector, name, entry) == Some(true)).collect();
        matching.sort_by_key(|(name, _)| (*name).clone());
        matching
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

    /// Every rule of a direction that the policy isolates.
    pub fn rules(&self, direction: Direction) -> impl Iterator<Item = RuleContext<'_>> {
        let rules = if self.policy.isolates(direction) { self.policy.rules(direction) } else { &[] };
        rules.iter().enumerate().map(move |(index, rule)| RuleContext { policy: self, direction, index, rule })
    }
}

/// One rule of a policy.
#[derive(Clone, Copy)]
pub struct RuleContext<'c> {
    pub policy: &'c PolicyContext<'c>,
    pub direction: Direction,
    pub rule: &'c Rule,
    index: usize,
}

impl<'c> RuleContext<'c> {
    pub fn peers(&self) -> impl Iterator<Item = (usize, &'c Peer)> + use<'c> {
        self.rule.peers.iter().flatten().enumerate()
    }

    pub fn ports(&self) -> impl Iterator<Item = (usize, &'c PortMatch)> + use<'c> {
        self.rule.ports.iter().flatten().enumerate()
    }

    /// `spec.ingress[0].from`
    pub fn peers_path(&self) -> String {
        format!("spec.{}[{}].{}", self.direction, self.index, self.direction.peers_field())
    }

    /// `spec.ingress[0].from[1]`
    pub fn peer_path(&self, peer: usize) -> String {
        format!("{}[{peer}]", self.peers_path())
    }

    /// `spec.ingress[0].ports[1]`
    pub fn port_path(&self, port: usize) -> String {
        format!("spec.{}[{}].ports[{port}]", self.direction, self.index)
    }
}

/// Returns true for a block of at most eight addresses: somebody wrote an address.
pub fn is_address(cidr: &IpNet) -> bool {
    cidr.max_prefix_len() - cidr.prefix_len() <= 3
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
