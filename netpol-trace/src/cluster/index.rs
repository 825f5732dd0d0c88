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

mod apply;
mod events;
mod history;
mod moment;
mod services;
mod strings;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

pub(super) use events::MAX_EVENTS;
pub use events::{IsolationEffect, PolicyEvent, PolicyEventKind};
use foldhash::fast::RandomState;
use history::History;
use ipnet::IpNet;
use jiff::Timestamp;
pub use moment::{Moment, PolicyChanged};
pub use services::Backend;
use strings::Strings;

use super::change::Kind;
use crate::model::cluster::{
    Direction, EndpointSlice, Labels, Namespace, Node, OtherPolicy, Pod, Policy, Protocol, Service, ServicePort,
};
use crate::model::{Part, PodRef, Str};

/// Looked into for each packet, an address outside the pod network some thirty times.
type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

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
    /// By group and kind; then by namespace and name.
    other_policies: BTreeMap<Kind, BTreeMap<(Option<Str>, Str), OtherPolicy>>,
    /// The kinds that were listed once: what is new since then really is new.
    listed: HashSet<Kind>,
    history: History,
    events: Vec<PolicyEvent>,
    /// Events without room.
    events_lost: u64,
    strings: Strings,
    /// See [`Index::version`].
    version: u64,
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
    /// As records show it, made for the first one.
    described: OnceLock<Part<PodRef>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PodKey {
    namespace: Str,
    name: Str,
    /// Since when the pod is known to have the address, on this machine's clock; at the first list: for ever.
    from: Timestamp,
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

    /// This pod as records show it. `describe` is asked once in the pod's life.
    pub fn described(&self, describe: impl FnOnce(&Pod) -> PodRef) -> &'a Part<PodRef> {
        self.entry.described.get_or_init(|| Part::new(describe(self.pod)))
    }
}

/// Whose address it is.
#[derive(Debug, Clone, Copy)]
pub enum AddressOwner<'a> {
    Pod(PodView<'a>),
    Node(&'a Node),
    /// Two or more pods claim it: naming either could be wrong.
    Ambiguous(usize),
    /// It passed from the one to the other about then.
    Either(&'a Pod, &'a Pod),
    /// Nobody's, but until lately this pod's.
    Former(&'a Pod),
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

    fn without_pods(&self) -> NamespaceEntry {
        NamespaceEntry {
            object: self.object.clone(),
            pods: BTreeMap::new(),
            policies: self.policies.clone(),
            services: self.services.clone(),
            slices: self.slices.clone(),
        }
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
    pub fn owner_of(&self, ip: IpAddr) -> AddressOwner<'_> {
        match self.pods_by_ip.get(&ip).map(Vec::as_slice) {
            Some([key]) => {
                let entry = self.namespaces.get(&key.namespace);
                entry.and_then(|entry| entry.pod(&key.name)).map_or(AddressOwner::None, AddressOwner::Pod)
            }
            Some(keys @ [_, _, ..]) => AddressOwner::Ambiguous(keys.len()),
            _ => self.owner_without_pod(ip),
        }
    }

    fn owner_without_pod(&self, ip: IpAddr) -> AddressOwner<'_> {
        if let Some(node) = self.nodes_by_ip.get(&ip).and_then(|name| self.nodes.get(name)) {
            return AddressOwner::Node(node);
        }
        self.history.claims(ip).next_back().map_or(AddressOwner::None, |claim| AddressOwner::Former(&claim.pod))
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

    /// Another number after each change of an object: what follows from the index alone follows still while it stays.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Policies of APIs that are not evaluated here.
    pub fn other_policies(&self) -> impl Iterator<Item = &OtherPolicy> {
        self.other_policies.values().flat_map(BTreeMap::values)
    }

    pub fn other_policy_kinds(&self) -> Vec<Kind> {
        self.other_policies.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
