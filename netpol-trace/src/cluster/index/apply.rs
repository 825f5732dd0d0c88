//! How the index changes: in place, at a cost that goes with the change and not with the cluster.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;

use super::super::change::{Change, Key, Kind, Scope};
use super::events::{Isolation, MAX_EVENTS, PolicyEvent, PolicyEventKind};
use super::history::{Before, Claim};
use super::{Index, NamespaceEntry, PodEntry, PodKey};
use crate::model::Str;
use crate::model::cluster::{Direction, Object, Pod, Policy};

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

    /// Makes `changes`, which were learned `at`, and remembers what held before.
    pub fn apply(&mut self, changes: Vec<Change>, at: Timestamp) {
        for change in changes {
            match change {
                Change::Upsert(object) => self.put(object, at),
                Change::Delete(key) => self.take(&key, at),
                Change::Replace(scope, objects) => self.replace(&scope, objects, at),
                Change::Listed(kind) => _ = self.listed.insert(kind),
            }
        }
        self.history.forget(at);
    }

    fn replace(&mut self, scope: &Scope, objects: Vec<Object>, at: Timestamp) {
        let mut gone: HashSet<Key> = self.keys(scope).collect();
        for object in &objects {
            gone.remove(&object.key());
        }
        for key in gone {
            self.take(&key, at);
        }
        for object in objects {
            self.put(object, at);
        }
        self.listed.insert(scope.kind.clone());
    }

    /// PolicyEventKind the source tells for the first time is how things stand, not a change.
    fn put(&mut self, object: Object, at: Timestamp) {
        let known = self.listed.contains(&object.kind());
        match object {
            Object::Pod(pod) => self.put_pod(pod, at, known),
            Object::Policy(policy) => self.put_policy(policy, at, known),
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                let before = self.namespaces.get(&name).and_then(|entry| entry.object.clone());
                let after = namespace.labels.clone();
                if before.as_deref() == Some(&namespace) {
                    return;
                }
                self.upsert(Object::Namespace(namespace));
                if let Some(before) = before.filter(|before| before.labels != after) {
                    let what = PolicyEventKind::NamespaceLabels { before: before.labels.clone(), after };
                    self.history.undo(&name, at, Before::Namespace(Some(before)));
                    self.tell(PolicyEvent { at, namespace: name, what });
                }
            }
            object if self.has(&object) => {}
            object => self.upsert(object),
        }
    }

    fn put_pod(&mut self, pod: Pod, at: Timestamp, known: bool) {
        let (namespace, key) = (pod.namespace.clone(), pod.key());
        let before = self.namespaces.get(&namespace).and_then(|n| n.pods.get(&key)).map(|entry| entry.pod.clone());
        if before.as_deref() == Some(&pod) {
            return;
        }
        let held = before.as_deref().map(|pod| self.claims_of(pod)).unwrap_or_default();
        let before = before.filter(|before| {
            let same = before.is_same(&pod);
            if !same {
                self.end_claims(before, &held, at);
            }
            same
        });
        let changed = before.as_ref().filter(|before| {
            (&before.labels, &before.ports, before.host_network, &before.node)
                != (&pod.labels, &pod.ports, pod.host_network, &pod.node)
        });
        if let Some(before) = changed {
            self.history.undo_pod(at, (*before).clone());
        }
        let from = if known { at } else { Timestamp::MIN };
        let claims: Vec<IpAddr> = if pod.owns_addresses() { pod.ips.to_vec() } else { Vec::new() };
        self.upsert_pod(pod, from);
        if known && claims.iter().any(|ip| !held.iter().any(|(known, _)| known == ip)) {
            self.history.touch(at);
        }
        let Some(before) = before else { return };
        for (ip, from) in &held {
            let keys = self.pods_by_ip.get_mut(ip).into_iter().flatten();
            if let Some(kept) = keys.into_iter().find(|k| k.namespace == namespace && k.name == key) {
                kept.from = *from;
            }
        }
        let ended: Vec<_> = held.into_iter().filter(|(ip, _)| !claims.contains(ip)).collect();
        self.end_claims(&before, &ended, at);
    }

    /// The addresses that a pod has in the index, and since when.
    fn claims_of(&self, pod: &Pod) -> Vec<(IpAddr, Timestamp)> {
        let own = |key: &&PodKey| key.namespace == pod.namespace && key.name == pod.name && !pod.template;
        let since = |ip: &IpAddr| Some((*ip, self.pods_by_ip.get(ip)?.iter().find(own)?.from));
        pod.ips.iter().filter_map(since).collect()
    }

    fn end_claims(&mut self, pod: &Arc<Pod>, claims: &[(IpAddr, Timestamp)], until: Timestamp) {
        for (ip, from) in claims {
            self.history.claim(*ip, Claim { pod: pod.clone(), from: *from, until });
        }
    }

    fn put_policy(&mut self, mut policy: Policy, at: Timestamp, known: bool) {
        let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
        let before = self.policy(&namespace, &name).cloned();
        if let Some(before) = before.as_ref().filter(|before| same(before, &policy)) {
            policy.changed = before.changed.or(policy.changed);
            if **before != policy {
                self.upsert(Object::Policy(policy));
            }
            return;
        }
        if !known {
            return self.upsert(Object::Policy(policy));
        }
        // The server's time, where it can be that of this change: not after it was learned, and later than the change before.
        let last = before.as_ref().and_then(|before| before.changed);
        policy.changed = policy.changed.filter(|told| *told <= at && Some(*told) > last).or(Some(at));
        let isolation = Isolation::of(self.namespaces.get(&namespace));
        self.upsert(Object::Policy(policy));
        self.policy_changed(&namespace, name, before, &isolation, at);
    }

    fn policy_changed(
        &mut self,
        namespace: &Str,
        name: Str,
        before: Option<Arc<Policy>>,
        isolation: &Isolation,
        at: Timestamp,
    ) {
        self.history.undo(namespace, at, Before::Policy(name.clone(), before.clone()));
        let effects = isolation.effects(self.namespaces.get(namespace));
        let after = self.policy(namespace, &name).cloned();
        let mut tell = |before, after, effects| {
            self.tell(PolicyEvent {
                at,
                namespace: namespace.clone(),
                what: PolicyEventKind::Policy { before, after, effects },
            });
        };
        let uid = |policy: &Option<Arc<Policy>>| policy.as_ref().and_then(|policy| policy.uid.clone());
        if uid(&before).zip(uid(&after)).is_some_and(|(before, after)| before != after) {
            // Another policy of the same name, found by a LIST: two changes, as the agents have them whose watch went on.
            tell(before, None, Vec::new());
            return tell(None, after, effects);
        }
        tell(before, after, effects);
    }

    fn tell(&mut self, event: PolicyEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.events_lost += 1;
        }
    }

    /// Changes that nobody took yet, and how many had no room.
    pub fn take_events(&mut self) -> (Vec<PolicyEvent>, u64) {
        (std::mem::take(&mut self.events), std::mem::take(&mut self.events_lost))
    }

    /// Removes an object and remembers it.
    fn take(&mut self, key: &Key, at: Timestamp) {
        let namespace = key.namespace.clone().unwrap_or_else(|| key.name.clone());
        let Some(entry) = self.namespaces.get(&namespace) else { return self.remove(key) };
        match key.kind {
            Kind::Pod => {
                let Some(pod) = entry.pods.get(&key.name).map(|entry| entry.pod.clone()) else { return };
                let held = self.claims_of(&pod);
                self.remove(key);
                self.end_claims(&pod, &held, at);
            }
            Kind::Policy => {
                let Some(policy) = entry.policies.get(&key.name).cloned() else { return };
                let isolation = Isolation::of(Some(entry));
                self.remove(key);
                self.policy_changed(&namespace, key.name.clone(), Some(policy), &isolation, at);
            }
            Kind::Namespace => {
                let object = entry.object.clone();
                self.remove(key);
                self.history.undo(&namespace, at, Before::Namespace(object));
            }
            Kind::Node | Kind::Service | Kind::EndpointSlice | Kind::OtherPolicy { .. } => self.remove(key),
        }
    }

    /// Whether the index holds exactly this object.
    fn has(&self, object: &Object) -> bool {
        match object {
            Object::Node(o) => self.nodes.get(&o.name).map(|n| &**n) == Some(o),
            Object::Service(o) => self.service(&o.namespace, &o.name).map(|s| &**s) == Some(o),
            Object::EndpointSlice(o) => {
                self.namespaces.get(&o.namespace).and_then(|n| n.slices.get(&o.name)).map(|s| &**s) == Some(o)
            }
            Object::OtherPolicy(o) => {
                let key = (o.namespace.clone(), o.name.clone());
                self.other_policies.get(&object.kind()).is_some_and(|known| known.contains_key(&key))
            }
            // They are remembered, and compared where that is done.
            Object::Namespace(_) | Object::Pod(_) | Object::Policy(_) => false,
        }
    }

    /// Removes the object of that key, if there is one.
    pub fn remove(&mut self, key: &Key) {
        self.version += 1;
        let namespace = key.namespace.as_deref().unwrap_or_default();
        match &key.kind {
            Kind::Namespace => self.remove_namespace(&key.name),
            Kind::Node => self.remove_node(&key.name),
            Kind::Pod => self.remove_pod(namespace, &key.name),
            Kind::Policy => self.remove_policy(namespace, &key.name),
            Kind::Service => self.remove_service(namespace, &key.name),
            Kind::EndpointSlice => self.remove_slice(namespace, &key.name),
            Kind::OtherPolicy { .. } => {
                if let Some(known) = self.other_policies.get_mut(&key.kind) {
                    known.remove(&(key.namespace.clone(), key.name.clone()));
                    if known.is_empty() {
                        self.other_policies.remove(&key.kind);
                    }
                }
            }
        }
    }

    /// PolicyEventKind the index holds of `scope`.
    fn keys<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = Key> + use<'a> {
        let kind = &scope.kind;
        let cluster_wide: Vec<&Str> = match kind {
            Kind::Namespace => {
                self.namespaces.iter().filter(|(_, n)| n.object.is_some()).map(|(name, _)| name).collect()
            }
            Kind::Node => self.nodes.keys().collect(),
            _ => Vec::new(),
        };
        let in_namespaces = self.namespaces.iter().flat_map(move |(namespace, entry)| {
            let names: Box<dyn Iterator<Item = &'a Str> + 'a> = match kind {
                Kind::Pod => {
                    let on = |pod: &Pod| scope.node.is_none() || pod.node == scope.node;
                    Box::new(entry.pods.iter().filter(move |(_, e)| on(&e.pod)).map(|(name, _)| name))
                }
                Kind::Policy => Box::new(entry.policies.keys()),
                Kind::Service => Box::new(entry.services.keys()),
                Kind::EndpointSlice => Box::new(entry.slices.keys()),
                Kind::Namespace | Kind::Node | Kind::OtherPolicy { .. } => Box::new(std::iter::empty()),
            };
            names.map(move |name| (Some(namespace), name))
        });
        let others = self.other_policies.get(kind).into_iter().flat_map(BTreeMap::keys);
        let others = others.map(|(namespace, name)| (namespace.as_ref(), name));
        let all = cluster_wide.into_iter().map(|name| (None, name)).chain(in_namespaces).chain(others);
        all.map(|(namespace, name)| Key { kind: kind.clone(), namespace: namespace.cloned(), name: name.clone() })
    }

    /// Adds an object, or replaces the one with its name.
    pub fn upsert(&mut self, object: Object) {
        self.version += 1;
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
            Object::Pod(pod) => self.upsert_pod(pod, Timestamp::MIN),
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
                let kind = Kind::OtherPolicy { group: other.group.clone(), kind: other.kind.clone() };
                let key = (other.namespace.clone(), other.name.clone());
                self.other_policies.entry(kind).or_default().insert(key, other);
            }
        }
    }

    /// Removes a pod by its name (a template by `kind/name`).
    pub(super) fn remove_pod(&mut self, namespace: &str, name: &str) {
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

    pub(super) fn remove_policy(&mut self, namespace: &str, name: &str) {
        if let Some(entry) = self.namespaces.get_mut(namespace)
            && entry.policies.remove(name).is_some()
        {
            entry.reisolate(name, None);
        }
        self.drop_empty(namespace);
    }

    pub(super) fn remove_service(&mut self, namespace: &str, name: &str) {
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

    pub(super) fn remove_slice(&mut self, namespace: &str, name: &str) {
        if let Some(entry) = self.namespaces.get_mut(namespace) {
            entry.slices.remove(name);
        }
        self.drop_empty(namespace);
    }

    /// Forgets the Namespace object; what lives in it stays until it is removed itself.
    pub(super) fn remove_namespace(&mut self, name: &str) {
        if let Some(entry) = self.namespaces.get_mut(name) {
            entry.object = None;
        }
        self.drop_empty(name);
    }

    pub(super) fn remove_node(&mut self, name: &str) {
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

    fn upsert_pod(&mut self, mut pod: Pod, from: Timestamp) {
        self.version += 1;
        let key = pod.key();
        self.remove_pod(&pod.namespace.clone(), &key);
        pod.labels = pod.labels.iter().map(|(k, v)| (self.strings.share(k), self.strings.share(v))).collect();
        pod.namespace = self.strings.share(&pod.namespace);
        pod.node = pod.node.map(|node| self.strings.share(&node));
        if let Some(owner) = &mut pod.owner {
            owner.kind = self.strings.share(&owner.kind);
            owner.name = self.strings.share(&owner.name);
        }
        for name in pod.ports.iter_mut().filter_map(|port| port.name.as_mut()) {
            *name = self.strings.share(name);
        }
        if pod.owns_addresses() {
            for ip in &pod.ips {
                let key = PodKey { namespace: pod.namespace.clone(), name: pod.name.clone(), from };
                // Nearly always one: room for more would be a tenth of the index.
                self.pods_by_ip.entry(*ip).or_insert_with(|| Vec::with_capacity(1)).push(key);
            }
        }
        let namespace = self.namespaces.entry(pod.namespace.clone()).or_default();
        let mut entry = PodEntry::new(Arc::new(pod));
        for policy in namespace.policies.values() {
            entry.isolate(policy);
        }
        namespace.pods.insert(key, entry);
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
    pub(super) fn new(pod: Arc<Pod>) -> PodEntry {
        PodEntry { pod, isolated_by: Default::default(), described: OnceLock::new() }
    }

    pub(super) fn isolate(&mut self, policy: &Arc<Policy>) {
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

/// Whether two versions of a policy decide the same: labels and annotations decide nothing.
fn same(old: &Policy, new: &Policy) -> bool {
    let (a, b) = (old, new);
    (&a.subject, &a.declared_types, &a.ingress, &a.egress) == (&b.subject, &b.declared_types, &b.ingress, &b.egress)
        && a.uid == b.uid
}
