//! Applies the lists and watch events of one collection to the [`Cluster`], and keeps the status of the source.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;

use super::super::change::{Change, Key, Scope};
use super::super::decode::wire::WireObject;
use super::super::kinds::Object;
use super::super::resource::Resource;
use super::super::source::{Cluster, SourceStatus};
use super::error::ApiError;
use crate::model::Str;
use crate::text::escape;

/// Objects that could not be decoded and are kept by name. The status counts no more of them.
const MAX_REFUSED: usize = 1_000;

/// How a list is applied to the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cluster) enum ListMode {
    /// As one change.
    Whole,
    /// Page by page, for kinds with very many objects: a list is then never in memory beside the index.
    Parts,
    /// Page by page, and nothing is removed: another source has objects of this kind too.
    Additions,
}

pub(in crate::cluster) struct Reflector {
    cluster: Cluster,
    scope: Scope,
    lists: ListMode,
    status: SourceStatus,
    /// The list that is being read.
    whole: Vec<Object>,
    seen: HashSet<u64>,
    hasher: RandomState,
    counted: u64,
    /// Called when the first list is complete.
    first: Option<Box<dyn FnOnce() + Send>>,
    /// The last request succeeded.
    connected: bool,
    error: Option<ApiError>,
    /// Objects that could not be decoded, with the reason.
    refused: BTreeMap<(Option<Str>, Str), String>,
    /// Watch events since the last list that could not be read.
    unreadable: u64,
}

impl Reflector {
    pub fn new(cluster: Cluster, name: &str, scope: Scope, lists: ListMode) -> Reflector {
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

    /// Sets the detail of the source's status.
    pub fn describe(&mut self, detail: String) {
        self.status.detail = Some(detail);
        self.publish_status();
    }

    /// Restricts the reflector to the pods of one node.
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

    /// Begins a list.
    pub fn begin(&mut self) {
        self.whole.clear();
        self.seen.clear();
        self.refused.clear();
        (self.counted, self.unreadable) = (0, 0);
    }

    /// Takes a page of the list.
    pub fn listed<R: Resource>(&mut self, objects: impl IntoIterator<Item = WireObject<R>>) {
        let mut changes = Vec::new();
        for object in objects {
            self.counted += 1;
            if self.lists == ListMode::Parts {
                self.seen.insert(self.hasher.hash_one((object.namespace.as_deref(), &*object.name)));
            }
            changes.push(self.change(object));
        }
        match self.lists {
            ListMode::Whole => self.whole.extend(changes.into_iter().filter_map(|change| match change {
                Change::Upsert(object) => Some(object),
                Change::Delete(_) | Change::Replace(..) | Change::Listed(_) => None,
            })),
            ListMode::Parts | ListMode::Additions => self.apply(changes),
        }
    }

    /// Ends the list.
    pub fn complete(&mut self) {
        let changes = match self.lists {
            ListMode::Whole => vec![Change::Replace(self.scope.clone(), std::mem::take(&mut self.whole))],
            ListMode::Parts => {
                let gone = self.gone().into_iter().map(Change::Delete);
                gone.chain([Change::Listed(self.scope.kind.clone())]).collect()
            }
            ListMode::Additions => Vec::new(),
        };
        self.seen = HashSet::new();
        self.apply(changes);
        self.connected();
        if let Some(first) = self.first.take() {
            first();
        }
    }

    /// Objects of the index that the list lacks.
    fn gone(&self) -> Vec<Key> {
        let index = self.cluster.read();
        let is_listed = |key: &Key| self.seen.contains(&self.hasher.hash_one((key.namespace.as_deref(), &*key.name)));
        self.scope.kind.resource().keys(&index, &self.scope).filter(|key| !is_listed(key)).collect()
    }

    /// Applies updates that arrived together.
    pub fn changed<R: Resource>(&mut self, updates: impl IntoIterator<Item = WatchUpdate<R>>) {
        let mut changes = Vec::new();
        for update in updates {
            match update {
                WatchUpdate::Upsert { object, new } => {
                    self.counted += u64::from(new);
                    changes.push(self.change(object));
                }
                WatchUpdate::Delete(object) => {
                    self.counted = self.counted.saturating_sub(1);
                    self.refused.remove(&(object.namespace.clone(), object.name.clone()));
                    let kind = self.scope.kind.clone();
                    changes.push(Change::Delete(Key { kind, namespace: object.namespace, name: object.name }));
                }
            }
        }
        self.apply(changes);
        self.connected();
    }

    /// Counts a watch event that could not be read: the index may now differ from the server in one object.
    pub fn unreadable(&mut self, error: &dyn std::fmt::Display) {
        tracing::warn!("{}: unreadable watch event: {}", self.status.name, escape(&error.to_string()));
        self.unreadable += 1;
        self.publish_status();
    }

    /// Records that the server responded: the index is what the server has.
    pub fn connected(&mut self) {
        if !self.connected && self.error.is_some() {
            tracing::info!("{}: in sync again", self.status.name);
        }
        self.connected = true;
        self.error = None;
        self.status.loaded_at = Timestamp::now();
        self.publish_status();
    }

    /// Records a failed request: the index may no longer be what the server has.
    pub fn failed(&mut self, error: &ApiError) {
        let message = error.to_string();
        let line = format!("{}: {}", self.status.name, escape(&message));
        // Repeated failures of one kind are logged once; their texts may differ.
        match self.error.as_ref().is_some_and(|before| before.kind == error.kind) {
            true => tracing::debug!("{line}"),
            false => tracing::warn!("{line}"),
        }
        self.connected = false;
        self.error = Some(error.clone());
        self.publish_status();
    }

    /// Removes the source and its objects: the server no longer has the kind.
    pub fn end(mut self) {
        self.begin();
        if self.lists == ListMode::Whole {
            self.apply(vec![Change::Replace(self.scope.clone(), Vec::new())]);
        }
        self.cluster.remove_source(&self.status.name);
    }

    /// An object that cannot be used removes its earlier version, and is reported.
    fn change<R: Resource>(&mut self, object: WireObject<R>) -> Change {
        let WireObject { namespace, name, decoded, .. } = object;
        let key = (namespace, name);
        match decoded {
            Ok(object) => {
                self.refused.remove(&key);
                Change::Upsert(object.with_kind(&self.scope.kind).into())
            }
            Err(violations) => {
                let why = violations.first().map(ToString::to_string).unwrap_or_default();
                let namespace = key.0.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
                let message = format!("{namespace}{}: {why}", key.1);
                tracing::warn!("{}: unusable object: {}", self.status.name, escape(&message));
                if self.refused.len() < MAX_REFUSED {
                    self.refused.insert(key.clone(), message);
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

    fn publish_status(&mut self) {
        // Verdicts without an existing policy are wrong. Without one pod of many they are unknown at worst.
        let whole = self.unreadable == 0 && (self.refused.is_empty() || !self.scope.kind.is_policy());
        self.status.synced = self.connected && whole;
        let refused = || {
            let (count, first) = (self.refused.len(), self.refused.values().next()?);
            Some(format!("{count} unusable objects; the first: {first}"))
        };
        let unreadable = || (self.unreadable > 0).then(|| format!("{} unreadable watch events", self.unreadable));
        self.status.error = self.error.as_ref().map(ToString::to_string).or_else(refused).or_else(unreadable);
        let kind = self.scope.kind.name().to_owned();
        self.status.objects = BTreeMap::from_iter((!kind.is_empty()).then_some((kind, self.counted)));
        self.cluster.set_source(self.status.clone());
    }
}

/// One event of a watch.
pub(in crate::cluster) enum WatchUpdate<R: Resource> {
    /// `new`: the watch says that the object did not exist before.
    Upsert {
        object: WireObject<R>,
        new: bool,
    },
    Delete(WireObject<R>),
}

#[cfg(test)]
mod tests;
