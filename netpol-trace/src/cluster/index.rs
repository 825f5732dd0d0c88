//! The index that every source fills and every verdict reads.
//!
//! ```text
//! address ─> pod key ─> namespace ─┬─ labels
//!                                  ├─ pods ─> pod, and the policies that isolate it in each direction
//!                                  └─ policies
//! ```
//!
//! Each pod has the list of policies that isolate it, so a verdict never scans policies. A changed policy costs a pass over its
//! namespace's pods, a changed pod a pass over its namespace's policies.

mod apply;
mod events;
mod history;
mod moment;
mod pod_network;
mod services;
mod strings;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

pub(in crate::cluster) use events::{Isolation, MAX_EVENTS};
pub use events::{IsolationEffect, PolicyEvent, PolicyEventKind};
use foldhash::fast::RandomState;
use history::History;
pub(in crate::cluster) use history::{Before, Claim};
use jiff::Timestamp;
pub use moment::{Moment, PolicyChanged};
use pod_network::PodNetwork;
pub use services::ServiceBackend;
use strings::Strings;

use super::kinds::{Kind, Object};
use super::resource::{ObjectVariant, Resource};
use crate::model::cluster::{
    Direction, EndpointSlice, Labels, Namespace, Node, OtherPolicy, Pod, Policy, Protocol, Service, ServicePort,
};
use crate::model::{Part, PodRef, Str};

/// Uses foldhash: each packet needs several look-ups, an address outside the pod network some thirty.
pub(in crate::cluster) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// The state of the cluster at one time.
#[derive(Debug, Clone, Default)]
pub struct Index {
    pub(in crate::cluster) namespaces: HashMap<Str, NamespaceEntry>,
    pub(in crate::cluster) nodes: BTreeMap<Str, Arc<Node>>,
    pub(in crate::cluster) pods_by_ip: HashMap<IpAddr, Vec<PodKey>>,
    pub(in crate::cluster) nodes_by_ip: HashMap<IpAddr, Str>,
    pub(in crate::cluster) services_by_ip: HashMap<IpAddr, Vec<(Str, Str)>>,
    pub(in crate::cluster) pod_network: PodNetwork,
    /// The addresses of this node, as the kernel lists them: bridges and tunnels too, which no Node object names.
    local_addresses: HashSet<IpAddr>,
    /// Objects of kinds that need no structure of their own: by kind, then by namespace and name.
    pub(in crate::cluster) objects: BTreeMap<Kind, BTreeMap<(Option<Str>, Str), Object>>,
    /// The kinds whose first list is complete: a new object of them is a change of the cluster.
    pub(in crate::cluster) listed: HashSet<Kind>,
    pub(in crate::cluster) history: History,
    pub(in crate::cluster) events: Vec<PolicyEvent>,
    /// Events that found no room in the queue.
    pub(in crate::cluster) events_lost: u64,
    pub(in crate::cluster) strings: Strings,
    /// See [`Index::version`].
    pub(in crate::cluster) version: u64,
}

/// One namespace with its objects. The entry exists as soon as it has an object, even if the source has no Namespace object:
/// `object` is then `None`, and the labels are not known.
#[derive(Debug, Clone, Default)]
pub struct NamespaceEntry {
    pub(in crate::cluster) object: Option<Arc<Namespace>>,
    /// By [`Pod::unique_name`].
    pub(in crate::cluster) pods: BTreeMap<Str, PodEntry>,
    pub(in crate::cluster) policies: BTreeMap<Str, Arc<Policy>>,
    pub(in crate::cluster) services: BTreeMap<Str, Arc<Service>>,
    pub(in crate::cluster) slices: BTreeMap<Str, Arc<EndpointSlice>>,
}

/// A pod and the policies that isolate it.
#[derive(Debug, Clone)]
pub struct PodEntry {
    pub(in crate::cluster) pod: Arc<Pod>,
    pub(in crate::cluster) isolated_by: [Vec<Arc<Policy>>; 2],
    /// The pod in the form of records, made for the first record.
    pub(in crate::cluster) described: OnceLock<Part<PodRef>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cluster) struct PodKey {
    pub(in crate::cluster) namespace: Str,
    pub(in crate::cluster) name: Str,
    /// The time since which the pod has the address, on this machine's clock. For pods of the first list the earliest time.
    pub(in crate::cluster) from: Timestamp,
}

/// A pod with its namespace and its isolating policies.
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

    /// This pod in the form of records. Calls `describe` once in the pod's life.
    pub fn described(&self, describe: impl FnOnce(&Pod) -> PodRef) -> &'a Part<PodRef> {
        self.entry.described.get_or_init(|| Part::new(describe(self.pod)))
    }
}

/// The owner of an address.
#[derive(Debug, Clone, Copy)]
pub enum AddressOwner<'a> {
    Pod(PodView<'a>),
    Node(&'a Node),
    /// Two or more pods have it: naming either could be wrong.
    Ambiguous(usize),
    /// It passed from one pod to the other at about that time.
    Either(&'a Pod, &'a Pod),
    /// Nobody has it, but until recently this pod had it.
    Former(&'a Pod),
    None,
}

impl NamespaceEntry {
    /// `None` if the source has no Namespace object.
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

    /// The pod of that name or, if there is none, the template of a workload of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodView<'_>> {
        let kinds = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"];
        let entry = self.namespaces.get(namespace)?;
        entry.pod(name).or_else(|| kinds.iter().find_map(|kind| self.workload(namespace, kind, name)))
    }

    /// The pod template of a workload.
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

    /// The owner of `ip`. A pod comes before a node, because hostNetwork pods do not count as owners.
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

    /// Sets the addresses of the network namespace that the agent runs in. They count as this node's if that is the node's own: if one of
    /// them is an address of a Node object.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) {
        self.local_addresses = addresses.iter().copied().filter(|ip| !ip.is_loopback()).collect();
        self.bump_version();
    }

    /// Returns true if these are the addresses that were set last.
    pub fn has_local_addresses(&self, addresses: &[IpAddr]) -> bool {
        let mut others = addresses.iter().filter(|ip| !ip.is_loopback());
        others.all(|ip| self.local_addresses.contains(ip))
            && self.local_addresses.iter().all(|ip| addresses.contains(ip))
    }

    fn local_node(&self) -> Option<&Arc<Node>> {
        let mut counts: BTreeMap<&Str, usize> = BTreeMap::new();
        // Nodes can share an address, such as that of a NAT gateway: this node has most of the local ones.
        for name in self.local_addresses.iter().filter_map(|ip| self.nodes_by_ip.get(ip)) {
            *counts.entry(name).or_default() += 1;
        }
        let (name, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        self.nodes.get(name)
    }

    fn owner_without_pod(&self, ip: IpAddr) -> AddressOwner<'_> {
        let local = if self.local_addresses.contains(&ip) { self.local_node() } else { None };
        let other = || self.nodes_by_ip.get(&ip).and_then(|name| self.nodes.get(name));
        if let Some(node) = local.or_else(other) {
            return AddressOwner::Node(node);
        }
        self.history.claims(ip).next_back().map_or(AddressOwner::None, |claim| AddressOwner::Former(&claim.pod))
    }

    /// Returns true if `ip` may be a pod's: it is in the pod network or next to it.
    pub fn in_pod_network(&self, ip: IpAddr) -> bool {
        self.pod_network.contains(ip)
    }

    /// Returns true if the nodes declare the pod network in full.
    pub fn knows_pod_networks(&self) -> bool {
        self.pod_network.is_declared_in_full()
    }

    /// The service with the address `ip`, and its port if `port` is one of its ports.
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

    /// Changes with each change of an object: a result that depends only on the index is valid while the version stays.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Policies of APIs that are not evaluated.
    pub fn other_policies(&self) -> impl Iterator<Item = &OtherPolicy> {
        self.objects.values().flat_map(BTreeMap::values).filter_map(OtherPolicy::of)
    }

    pub fn other_policy_kinds(&self) -> Vec<Kind> {
        self.objects.keys().filter(|kind| matches!(kind, Kind::OtherPolicy { .. })).cloned().collect()
    }

    /// The objects of a kind that has no structure of its own in the index.
    pub(in crate::cluster) fn objects_of<R: Resource>(&self, kind: &Kind) -> impl Iterator<Item = &R> {
        self.objects.get(kind).into_iter().flat_map(BTreeMap::values).filter_map(R::of)
    }
}

#[cfg(test)]
mod tests;
