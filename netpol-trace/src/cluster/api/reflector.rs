//! One resource's way into the [`Cluster`]: its objects, and how its source stands.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;

use super::super::change::{Change, Key, Kind, Scope};
use super::super::source::{Cluster, SourceStatus};
use super::error::ApiError;
use super::items::{Item, Raw};
use crate::model::Str;
use crate::model::cluster::Object;
use crate::text::escape;

/// Objects that can't be used, remembered by name; more are only counted with the next list.
const MAX_REFUSED: usize = 1_000;

/// How a list gets into the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lists {
    /// As one change.
    Whole,
    /// In parts, for what can be as many as pods are: never all of them twice in memory.
    Parts,
    /// Other sources have objects of this kind too: nothing is taken away.
    Additions,
}

pub(super) struct Reflector {
    cluster: Cluster,
    scope: Scope,
    lists: Lists,
    status: SourceStatus,
    /// Of the list that is being read.
    whole: Vec<Object>,
    seen: HashSet<u64>,
    hasher: RandomState,
    counted: u64,
    /// Called when the first list is complete.
    first: Option<Box<dyn FnOnce() + Send>>,
    /// The connection as such works.
    connected: bool,
    error: Option<ApiError>,
    refused: BTreeMap<(Option<Str>, Str), String>,
    /// Events that could not be read at all since the last list.
    unreadable: u64,
}

impl Reflector {
    pub fn new(cluster: Cluster, name: &str, scope: Scope, lists: Lists) -> Reflector {
        let status = SourceStatus::expected(name);
        cluster.set_source(status.clone());
        Reflector {
            cluster,
            scope,
            lists,
            status,
            whole: Vec::new(),
            seen: HashSet::new(),
            hasher: RandomState::new(),
            counted: 0,
            first: None,
            connected: false,
            error: None,
            refused: BTreeMap::new(),
            unreadable: 0,
        }
    }

    /// Says more of this source in its status.
    pub fn describe(&mut self, detail: String) {
        self.status.detail = Some(detail);
        self.tell();
    }

    /// Covers the pods of one node only.
    pub fn only_on(&mut self, node: Str) {
        self.scope = Scope::pods_on(node);
    }

    /// Calls `first` when the first list is complete.
    pub fn on_first(&mut self, first: impl FnOnce() + Send + 'static) {
        self.first = Some(Box::new(first));
    }

    pub fn name(&self) -> &str {
        &self.status.name
    }

    pub fn synced(&self) -> bool {
        self.status.synced
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.whole.clear();
        self.seen.clear();
        self.refused.clear();
        (self.counted, self.unreadable) = (0, 0);
    }

    /// A part of the list.
    pub fn listed<R: Raw>(&mut self, items: impl IntoIterator<Item = Item<R>>) {
        let mut changes = Vec::new();
        for item in items {
            self.counted += 1;
            if self.lists == Lists::Parts {
                self.seen.insert(self.hasher.hash_one((item.namespace.as_deref(), &*item.name)));
            }
            changes.push(self.change(item));
        }
        match self.lists {
            Lists::Whole => self.whole.extend(changes.into_iter().filter_map(|change| match change {
                Change::Upsert(object) => Some(object),
                Change::Delete(_) | Change::Replace(..) | Change::Listed(_) => None,
            })),
            Lists::Parts | Lists::Additions => self.apply(changes),
        }
    }

    /// The list is complete.
    pub fn complete(&mut self) {
        let changes = match self.lists {
            Lists::Whole => vec![Change::Replace(self.scope.clone(), std::mem::take(&mut self.whole))],
            Lists::Parts => {
                let gone = self.gone().into_iter().map(Change::Delete);
                gone.chain([Change::Listed(self.scope.kind.clone())]).collect()
            }
            Lists::Additions => Vec::new(),
        };
        self.seen = HashSet::new();
        self.apply(changes);
        self.connected();
        if let Some(first) = self.first.take() {
            first();
        }
    }

    /// Pods of the index that the list didn't have.
    fn gone(&self) -> Vec<Key> {
        let index = self.cluster.read();
        let pods = index.namespaces().flat_map(|(_, entry)| entry.pods()).map(|view| view.pod);
        let here =
            pods.filter(|pod| !pod.template && self.scope.node.as_ref().is_none_or(|n| pod.node.as_ref() == Some(n)));
        let gone = here.filter(|pod| !self.seen.contains(&self.hasher.hash_one((Some(&*pod.namespace), &*pod.name))));
        let key = |pod: &std::sync::Arc<crate::model::cluster::Pod>| Key {
            kind: Kind::Pod,
            namespace: Some(pod.namespace.clone()),
            name: pod.name.clone(),
        };
        gone.map(key).collect()
    }

    /// What a watch told at once.
    pub fn changed<R: Raw>(&mut self, events: impl IntoIterator<Item = WatchUpdate<R>>) {
        let mut changes = Vec::new();
        for event in events {
            match event {
                WatchUpdate::Upsert { item, new } => {
                    self.counted += u64::from(new);
                    changes.push(self.change(item));
                }
                WatchUpdate::Delete(item) => {
                    self.counted = self.counted.saturating_sub(1);
                    self.refused.remove(&(item.namespace.clone(), item.name.clone()));
                    let kind = self.scope.kind.clone();
                    changes.push(Change::Delete(Key { kind, namespace: item.namespace, name: item.name }));
                }
            }
        }
        self.apply(changes);
        self.connected();
    }

    /// An event that is not what the API says it is: one object is no longer as the server has it.
    pub fn unreadable(&mut self, error: &dyn std::fmt::Display) {
        tracing::warn!("{}: an event that can't be read: {}", self.status.name, escape(&error.to_string()));
        self.unreadable += 1;
        self.tell();
    }

    /// The server was heard: what is in force is what it says.
    pub fn connected(&mut self) {
        if !self.connected && self.error.is_some() {
            tracing::info!("{}: in sync again", self.status.name);
        }
        self.connected = true;
        self.error = None;
        self.status.loaded_at = Timestamp::now();
        self.tell();
    }

    /// What is in force may no longer be what the server says.
    pub fn failed(&mut self, error: &ApiError) {
        let message = error.to_string();
        let line = format!("{}: {}", self.status.name, escape(&message));
        // The same again and again in other words: told once.
        match self.error.as_ref().is_some_and(|before| before.kind == error.kind) {
            true => tracing::debug!("{line}"),
            false => tracing::warn!("{line}"),
        }
        self.connected = false;
        self.error = Some(error.clone());
        self.tell();
    }

    /// The server no longer has the resource: nothing of it is in force, and nobody waits for it.
    pub fn end(mut self) {
        self.begin();
        if self.lists == Lists::Whole {
            self.apply(vec![Change::Replace(self.scope.clone(), Vec::new())]);
        }
        self.cluster.remove_source(&self.status.name);
    }

    /// What an item changes. One that can't be used takes the place of its earlier version with nothing, and is told.
    fn change<R: Raw>(&mut self, item: Item<R>) -> Change {
        let key = (item.namespace, item.name);
        match item.object {
            Ok(mut object) => {
                self.refused.remove(&key);
                if let (Object::OtherPolicy(other), Kind::OtherPolicy { group, kind }) = (&mut object, &self.scope.kind)
                {
                    (other.group, other.kind) = (group.clone(), kind.clone());
                }
                Change::Upsert(object)
            }
            Err(violations) => {
                let why = violations.first().map(ToString::to_string).unwrap_or_default();
                let named = key.0.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
                let told = format!("{named}{}: {why}", key.1);
                tracing::warn!("{}: an object that can't be used: {}", self.status.name, escape(&told));
                if self.refused.len() < MAX_REFUSED {
                    self.refused.insert(key.clone(), told);
                }
                Change::Delete(Key { kind: self.scope.kind.clone(), namespace: key.0, name: key.1 })
            }
        }
    }

    fn apply(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.cluster.apply(changes, Timestamp::now());
        }
    }

    fn tell(&mut self) {
        // Without a policy that exists, verdicts are wrong; without one of a thousand pods they are unknown at worst.
        let whole = self.unreadable == 0 && (self.refused.is_empty() || self.scope.kind != Kind::Policy);
        self.status.synced = self.connected && whole;
        let refused = || {
            let (count, first) = (self.refused.len(), self.refused.values().next()?);
            Some(format!("{count} objects can't be used; the first: {first}"))
        };
        let unreadable = || (self.unreadable > 0).then(|| format!("{} events can't be read", self.unreadable));
        self.status.error = self.error.as_ref().map(ToString::to_string).or_else(refused).or_else(unreadable);
        let kind = kind_name(&self.scope.kind).to_owned();
        self.status.objects = BTreeMap::from_iter((!kind.is_empty()).then_some((kind, self.counted)));
        self.cluster.set_source(self.status.clone());
    }
}

/// One event of a watch.
#[derive(Debug)]
pub(super) enum WatchUpdate<R> {
    Upsert { item: Item<R>, new: bool },
    Delete(Item<R>),
}

#[cfg(test)]
mod tests;

fn kind_name(kind: &Kind) -> &str {
    match kind {
        Kind::Namespace => "Namespace",
        Kind::Node => "Node",
        Kind::Pod => "Pod",
        Kind::Policy => "NetworkPolicy",
        Kind::Service => "Service",
        Kind::EndpointSlice => "EndpointSlice",
        Kind::OtherPolicy { kind, .. } => kind,
    }
}
