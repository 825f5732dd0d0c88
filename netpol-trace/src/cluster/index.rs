//! The one index that every source fills and every verdict reads.
//!
//! ```text
//! address ─> pod key ─> namespace ─┬─ labels
//!                                  ├─ pods ─> pod, and the policies that isolate it in each direction
//!                                  └─ policies
//! ```
//!
//! A pod carries the list of policies that isolate it, so a verdict never scans policies: one changed policy costs a
//! pass over its namespace's pods, one changed pod a pass over its namespace's policies.

mod services;
mod strings;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use services::Backend;
use strings::Strings;

use super::model::{
    Direction, EndpointSlice, Labels, Namespace, Node, Object, OtherPolicy, Pod, Policy, Protocol, Service,
    ServicePort, Str,
};

/// Everything known of the cluster at one time.
#[derive(Debug, Clone, Default)]
pub struct Index {
    namespaces: HashMap<Str, NamespaceEntry>,
    nodes: BTreeMap<Str, Arc<Node>>,
    pods_by_ip: HashMap<IpAddr, Vec<PodKey>>,
    nodes_by_ip: HashMap<IpAddr, Str>,
    services_by_ip: HashMap<IpAddr, Vec<(Str, Str)>>,
    /// The nodes' pod CIDRs, with how many nodes have each.
    pod_networks: HashMap<IpNet, u32>,
    other_policies: Vec<OtherPolicy>,
    strings: Strings,
}

/// One namespace with all that lives in it. It exists as soon as something is in it, even when the source never showed
/// the Namespace object: `object` is then `None` and its labels are not known.
#[derive(Debug, Clone, Default)]
pub struct NamespaceEntry {
    object: Option<Arc<Namespace>>,
    /// By name; templates by `kind/name`, which no pod can be called.
    pods: BTreeMap<Str, PodEntry>,
    policies: BTreeMap<Str, Arc<Policy>>,
    services: BTreeMap<Str, Arc<Service>>,
    slices: BTreeMap<Str, Arc<EndpointSlice>>,
}

/// A pod and the policies that isolate it.
#[derive(Debug, Clone)]
pub struct PodEntry {
    pod: Arc<Pod>,
    isolated_by: [Vec<Arc<Policy>>; 2],
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PodKey {
    namespace: Str,
    name: Str,
}

/// A pod as the verdict needs it: with its namespace and its isolating policies at hand.
#[derive(Debug, Clone, Copy)]
pub struct PodView<'a> {
    pub pod: &'a Arc<Pod>,
    pub namespace: &'a NamespaceEntry,
    entry: &'a PodEntry,
}

impl<'a> PodView<'a> {
    /// The policies that isolate this pod in `direction`, by name.
    pub fn isolated_by(&self, direction: Direction) -> &'a [Arc<Policy>] {
        &self.entry.isolated_by[direction as usize]
    }
}

/// Whose address it is.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    Pod(PodView<'a>),
    Node(&'a Node),
    /// Two or more pods claim it: naming either could be wrong.
    Ambiguous(usize),
    None,
}

impl NamespaceEntry {
    /// `None` when the source never showed the Namespace object.
    pub fn labels(&self) -> Option<&Labels> {
        self.object.as_ref().map(|o| &o.labels)
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    pub fn pods(&self) -> impl Iterator<Item = PodView<'_>> {
        self.pods.values().map(|entry| PodView { pod: &entry.pod, namespace: self, entry })
    }

    fn pod(&self, key: &str) -> Option<PodView<'_>> {
        let entry = self.pods.get(key)?;
        Some(PodView { pod: &entry.pod, namespace: self, entry })
    }

    fn is_empty(&self) -> bool {
        self.object.is_none()
            && self.pods.is_empty()
            && self.policies.is_empty()
            && self.services.is_empty()
            && self.slices.is_empty()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.values()
    }
}

impl Index {
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Index {
        let mut index = Index::default();
        let (policies, rest): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| matches!(object, Object::Policy(_)));
        // Policies first: each pod is then matched once instead of once per policy of its namespace.
        for object in policies.into_iter().chain(rest) {
            index.upsert(object);
        }
        index
    }

    /// Adds an object, or replaces the one with its name.
    pub fn upsert(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                self.namespaces.entry(name).or_default().object = Some(Arc::new(namespace));
            }
            Object::Node(node) => {
                self.remove_node(&node.name.clone());
                for ip in &node.ips {
                    self.nodes_by_ip.insert(*ip, node.name.clone());
                }
                for cidr in &node.pod_cidrs {
                    *self.pod_networks.entry(cidr.trunc()).or_default() += 1;
                }
                self.nodes.insert(node.name.clone(), Arc::new(node));
            }
            Object::Pod(pod) => self.upsert_pod(pod),
            Object::Policy(mut policy) => {
                self.strings.share_selectors(&mut policy);
                let entry = self.namespaces.entry(policy.namespace.clone()).or_default();
                let policy = Arc::new(policy);
                entry.policies.insert(policy.name.clone(), policy.clone());
                entry.reisolate(&policy.name, Some(&policy));
            }
            Object::Service(service) => {
                self.remove_service(&service.namespace.clone(), &service.name.clone());
                for ip in &service.ips {
                    let key = (service.namespace.clone(), service.name.clone());
                    self.services_by_ip.entry(*ip).or_default().push(key);
                }
                let entry = self.namespaces.entry(service.namespace.clone()).or_default();
                entry.services.insert(service.name.clone(), Arc::new(service));
            }
            Object::EndpointSlice(slice) => {
                let entry = self.namespaces.entry(slice.namespace.clone()).or_default();
                entry.slices.insert(slice.name.clone(), Arc::new(slice));
            }
            Object::OtherPolicy(other) => {
                if !self.other_policies.contains(&other) {
                    self.other_policies.push(other);
                }
            }
        }
    }

    /// Removes a pod by its name (a template by `kind/name`).
    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        let Some(entry) = self.namespaces.get_mut(namespace).and_then(|n| n.pods.remove(name)) else { return };
        for ip in &entry.pod.ips {
            if let Some(keys) = self.pods_by_ip.get_mut(ip) {
                keys.retain(|key| !(*key.namespace == *namespace && *key.name == *name));
                if keys.is_empty() {
                    self.pods_by_ip.remove(ip);
                }
            }
        }
        self.drop_empty(namespace);
    }

    pub fn remove_policy(&mut self, namespace: &str, name: &str) {
        if let Some(entry) = self.namespaces.get_mut(namespace)
            && entry.policies.remove(name).is_some()
        {
            entry.reisolate(name, None);
        }
        self.drop_empty(namespace);
    }

    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        let Some(service) = self.namespaces.get_mut(namespace).and_then(|n| n.services.remove(name)) else { return };
        for ip in &service.ips {
            if let Some(keys) = self.services_by_ip.get_mut(ip) {
                keys.retain(|(ns, n)| !(**ns == *namespace && **n == *name));
                if keys.is_empty() {
                    self.services_by_ip.remove(ip);
                }
            }
        }
        self.drop_empty(namespace);
    }

    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        if let Some(entry) = self.namespaces.get_mut(namespace) {
            entry.slices.remove(name);
        }
        self.drop_empty(namespace);
    }

    /// Forgets the Namespace object; what lives in it stays until it is removed itself.
    pub fn remove_namespace(&mut self, name: &str) {
        if let Some(entry) = self.namespaces.get_mut(name) {
            entry.object = None;
        }
        self.drop_empty(name);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(node) = self.nodes.remove(name) else { return };
        for ip in &node.ips {
            if self.nodes_by_ip.get(ip).is_some_and(|owner| **owner == *name) {
                self.nodes_by_ip.remove(ip);
            }
        }
        for cidr in &node.pod_cidrs {
            if let Some(count) = self.pod_networks.get_mut(&cidr.trunc()) {
                *count -= 1;
                if *count == 0 {
                    self.pod_networks.remove(&cidr.trunc());
                }
            }
        }
    }

    fn drop_empty(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(NamespaceEntry::is_empty) {
            self.namespaces.remove(namespace);
        }
    }

    fn upsert_pod(&mut self, mut pod: Pod) {
        let key: Str = match &pod.owner {
            Some(owner) if pod.template => format!("{}/{}", owner.kind, pod.name).into(),
            _ => pod.name.clone(),
        };
        self.remove_pod(&pod.namespace.clone(), &key);
        pod.labels = pod.labels.iter().map(|(k, v)| (self.strings.share(k), self.strings.share(v))).collect();
        pod.namespace = self.strings.share(&pod.namespace);
        pod.node = pod.node.map(|node| self.strings.share(&node));
        // hostNetwork pods share their node's addresses, finished pods no longer own theirs.
        if !pod.host_network && !pod.is_over() {
            for ip in &pod.ips {
                let key = PodKey { namespace: pod.namespace.clone(), name: pod.name.clone() };
                self.pods_by_ip.entry(*ip).or_default().push(key);
            }
        }
        let namespace = self.namespaces.entry(pod.namespace.clone()).or_default();
        let mut entry = PodEntry { pod: Arc::new(pod), isolated_by: Default::default() };
        for policy in namespace.policies.values() {
            entry.isolate(policy);
        }
        namespace.pods.insert(key, entry);
    }

    pub fn namespace(&self, name: &str) -> Option<&NamespaceEntry> {
        self.namespaces.get(name)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = (&Str, &NamespaceEntry)> {
        self.namespaces.iter()
    }

    /// The pod of that name or, where the source has none, the template of a workload of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodView<'_>> {
        let kinds = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"];
        let entry = self.namespaces.get(namespace)?;
        entry.pod(name).or_else(|| kinds.iter().find_map(|kind| self.workload(namespace, kind, name)))
    }

    /// The template of the workload, where the source has the workload.
    pub fn workload(&self, namespace: &str, kind: &str, name: &str) -> Option<PodView<'_>> {
        self.namespaces.get(namespace)?.pod(&format!("{kind}/{name}"))
    }

    pub fn policy(&self, namespace: &str, name: &str) -> Option<&Arc<Policy>> {
        self.namespaces.get(namespace)?.policies.get(name)
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.namespaces.get(namespace)?.services.get(name)
    }

    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// Whose address `ip` is. A pod's claim comes before a node's: hostNetwork pods never claim.
    pub fn owner_of(&self, ip: IpAddr) -> Owner<'_> {
        match self.pods_by_ip.get(&ip).map(Vec::as_slice) {
            Some([key]) => {
                let entry = self.namespaces.get(&key.namespace);
                entry.and_then(|entry| entry.pod(&key.name)).map_or(Owner::None, Owner::Pod)
            }
            Some(keys @ [_, _, ..]) => Owner::Ambiguous(keys.len()),
            _ => match self.nodes_by_ip.get(&ip).and_then(|name| self.nodes.get(name)) {
                Some(node) => Owner::Node(node),
                None => Owner::None,
            },
        }
    }

    /// Whether `ip` lies in a node's pod CIDR.
    pub fn in_pod_network(&self, ip: IpAddr) -> bool {
        let lengths = 0..=if ip.is_ipv4() { 32 } else { 128 };
        // One look per prefix length costs the same for one node and for ten thousand.
        let mut networks = lengths.filter_map(|length| IpNet::new(ip, length).ok());
        !self.pod_networks.is_empty() && networks.any(|net| self.pod_networks.contains_key(&net.trunc()))
    }

    /// Whether any node told its pod CIDRs.
    pub fn knows_pod_networks(&self) -> bool {
        !self.pod_networks.is_empty()
    }

    /// The service that answers at `ip`, and its port where `port` is one of them.
    pub fn service_at(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Option<(&Service, Option<&ServicePort>)> {
        let keys = self.services_by_ip.get(&ip)?;
        let mut found = None;
        for (namespace, name) in keys {
            let service = self.namespaces.get(namespace)?.services.get(name)?;
            let exact = service.ports.iter().find(|p| p.port == port && p.protocol == protocol);
            if exact.is_some() {
                return Some((service, exact));
            }
            found.get_or_insert((&**service, None));
        }
        found
    }

    /// Policies of APIs that are not evaluated here.
    pub fn other_policies(&self) -> &[OtherPolicy] {
        &self.other_policies
    }
}

impl NamespaceEntry {
    /// After a policy came, changed or went: which pods it isolates now.
    fn reisolate(&mut self, name: &str, policy: Option<&Arc<Policy>>) {
        for entry in self.pods.values_mut() {
            for list in &mut entry.isolated_by {
                list.retain(|p| *p.name != *name);
            }
            if let Some(policy) = policy {
                entry.isolate(policy);
            }
        }
    }
}

impl PodEntry {
    fn isolate(&mut self, policy: &Arc<Policy>) {
        if self.pod.host_network || !policy.subject.matches(&self.pod.labels) {
            return;
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            if policy.isolates(direction) {
                let list = &mut self.isolated_by[direction as usize];
                let at = list.partition_point(|p| p.name < policy.name);
                list.insert(at, policy.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
