//! Namespaces: their labels, by which policies of other namespaces select them.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::super::api::Need;
use super::super::change::{Key, Scope};
use super::super::decode::meta::{CheckedMetadata, namespace_syntax};
use super::super::decode::{Checked, Violations, wire};
use super::super::index::{Before, Index, PolicyEvent, PolicyEventKind};
use super::super::resource::{KindInfo, Resource};
use super::super::yaml::Path;
use super::Kind;
use crate::model::Str;
use crate::model::cluster::Namespace;

pub(in crate::cluster) const INFO: KindInfo =
    KindInfo { name: "Namespace", plural: "namespaces", need: Need::ForVerdicts, ..KindInfo::DEFAULT };

/// A namespace without its status.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::cluster) struct NamespaceWire {
    #[serde(deserialize_with = "wire::metadata")]
    metadata: ObjectMeta,
}

impl From<NamespaceWire> for core::Namespace {
    fn from(wire: NamespaceWire) -> core::Namespace {
        core::Namespace { metadata: wire.metadata, ..core::Namespace::default() }
    }
}

impl Resource for Namespace {
    type Api = core::Namespace;
    type Wire = NamespaceWire;

    fn metadata(api: &core::Namespace) -> &ObjectMeta {
        &api.metadata
    }

    /// Adds the label that the API server sets on each namespace (KEP-2161).
    fn decode(api: &core::Namespace) -> Checked<Namespace> {
        let mut violations = Violations::default();
        let meta = CheckedMetadata::read(&api.metadata, &mut violations);
        namespace_syntax(&meta.name, &Path::parse("metadata.name"), &mut violations);
        let name_label = [(Str::from("kubernetes.io/metadata.name"), meta.name.clone())];
        let labels = meta.labels.iter().map(|(k, v)| (k.clone(), v.clone())).chain(name_label).collect();
        violations.check(Namespace { name: meta.name, labels })
    }

    fn key(&self) -> Key {
        Key { kind: Kind::Namespace, namespace: None, name: self.name.clone() }
    }

    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a Namespace> {
        index.namespaces.get(&key.name)?.object.as_deref()
    }

    fn keys<'a>(index: &'a Index, _: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        Box::new(index.namespaces.values().filter_map(|entry| entry.object.as_deref()).map(Resource::key))
    }

    fn insert(self, index: &mut Index) {
        let name = self.name.clone();
        index.namespaces.entry(name).or_default().object = Some(Arc::new(self));
    }

    /// Removes the Namespace object. What lives in the namespace stays until it is removed itself.
    fn remove(index: &mut Index, key: &Key) {
        if let Some(entry) = index.namespaces.get_mut(&key.name) {
            entry.object = None;
        }
        index.remove_if_empty(&key.name);
    }

    fn put(self, index: &mut Index, at: Timestamp, _listed: bool) {
        let before = index.namespaces.get(&self.name).and_then(|entry| entry.object.clone());
        if before.as_deref() == Some(&self) {
            return;
        }
        let (name, after) = (self.name.clone(), self.labels.clone());
        index.upsert(self.into());
        if let Some(before) = before.filter(|before| before.labels != after) {
            let kind = PolicyEventKind::NamespaceLabels { before: before.labels.clone(), after };
            index.history.undo(&name, at, Before::Namespace(Some(before)));
            index.push_event(PolicyEvent { at, namespace: name, kind });
        }
    }

    fn take(index: &mut Index, key: &Key, at: Timestamp) {
        let before = index.namespaces.get(&key.name).map(|entry| entry.object.clone());
        index.remove(key);
        if let Some(object) = before {
            index.history.undo(&key.name, at, Before::Namespace(object));
        }
    }
}
