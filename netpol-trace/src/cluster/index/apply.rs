//! Applies changes to the index in place: the cost follows the size of the change, not of the cluster.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;

use super::super::change::{Change, Key, Scope};
use super::super::kinds::Object;
use super::events::{MAX_EVENTS, PolicyEvent};
use super::{Index, NamespaceEntry, PodEntry};
use crate::model::cluster::{Direction, Pod, Policy};

impl Index {
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Index {
        let mut index = Index::default();
        let (policies, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object.kind().is_policy());
        // Policies first: each pod is then matched once instead of once per policy of its namespace.
        for object in policies.into_iter().chain(rest) {
            index.upsert(object);
        }
        index
    }

    /// Applies `changes`, which the source reported at `at`, and records in the history what they replace.
    pub fn apply(&mut self, changes: Vec<Change>, at: Timestamp) {
        for change in changes {
            match change {
                Change::Upsert(object) => self.put(object, at),
                Change::Delete(key) => key.kind.resource().take(self, &key, at),
                Change::Replace(scope, objects) => self.replace(&scope, objects, at),
                Change::Listed(kind) => _ = self.listed.insert(kind),
            }
        }
        self.history.forget(at);
    }

    fn replace(&mut self, scope: &Scope, objects: Vec<Object>, at: Timestamp) {
        let mut gone: HashSet<Key> = scope.kind.resource().keys(self, scope).collect();
        for object in &objects {
            gone.remove(&object.key());
        }
        for key in gone {
            key.kind.resource().take(self, &key, at);
        }
        for object in objects {
            self.put(object, at);
        }
        self.listed.insert(scope.kind.clone());
    }

    fn put(&mut self, object: Object, at: Timestamp) {
        let listed = self.listed.contains(&object.kind());
        object.put(self, at, listed);
    }

    /// Adds an object, or replaces the one with its key, without history.
    pub fn upsert(&mut self, object: Object) {
        self.bump_version();
        object.insert(self);
    }

    /// Removes the object with this key, if there is one, without history.
    pub fn remove(&mut self, key: &Key) {
        self.bump_version();
        key.kind.resource().remove(self, key);
    }

    pub(in crate::cluster) fn bump_version(&mut self) {
        self.version += 1;
    }

    pub(in crate::cluster) fn push_event(&mut self, event: PolicyEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.events_lost += 1;
        }
    }

    /// Takes the queued events, and the number of events that found no room in the queue.
    pub fn take_events(&mut self) -> (Vec<PolicyEvent>, u64) {
        (std::mem::take(&mut self.events), std::mem::take(&mut self.events_lost))
    }

    /// Removes a namespace of which nothing is left.
    pub(in crate::cluster) fn remove_if_empty(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(NamespaceEntry::is_empty) {
            self.namespaces.remove(namespace);
        }
    }
}

impl NamespaceEntry {
    /// Updates which pods the policy `name` isolates. `policy` is `None` when it was deleted.
    pub(in crate::cluster) fn reisolate(&mut self, name: &str, policy: Option<&Arc<Policy>>) {
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
    pub(in crate::cluster) fn new(pod: Arc<Pod>) -> PodEntry {
        PodEntry { pod, isolated_by: Default::default(), described: OnceLock::new() }
    }

    pub(in crate::cluster) fn isolate(&mut self, policy: &Arc<Policy>) {
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
