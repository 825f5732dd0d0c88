//! Policies of APIs that are not evaluated: only their names are read.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::super::change::{Key, Scope};
use super::super::decode::{Checked, wire};
use super::super::index::Index;
use super::super::resource::Resource;
use super::Kind;
use crate::model::cluster::OtherPolicy;

/// An object of any kind, of which only the metadata is read.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::cluster) struct NameWire {
    #[serde(deserialize_with = "wire::metadata")]
    metadata: ObjectMeta,
}

impl Resource for OtherPolicy {
    type Api = NameWire;
    type Wire = NameWire;

    fn metadata(api: &NameWire) -> &ObjectMeta {
        &api.metadata
    }

    /// The metadata of an object does not have its kind: the caller adds it by [`Resource::with_kind`].
    fn decode(api: &NameWire) -> Checked<OtherPolicy> {
        let ObjectMeta { namespace, name, .. } = &api.metadata;
        Ok(OtherPolicy {
            group: "".into(),
            kind: "".into(),
            namespace: namespace.as_deref().map(Into::into),
            name: name.as_deref().unwrap_or_default().into(),
        })
    }

    fn key(&self) -> Key {
        let kind = Kind::OtherPolicy { group: self.group.clone(), kind: self.kind.clone() };
        Key { kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }

    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a OtherPolicy> {
        index.other_policies.get(&key.kind)?.get(&(key.namespace.clone(), key.name.clone()))
    }

    fn keys<'a>(index: &'a Index, scope: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        let policies = index.other_policies.get(&scope.kind).into_iter().flat_map(BTreeMap::values);
        Box::new(policies.map(Resource::key))
    }

    fn insert(self, index: &mut Index) {
        let Key { kind, namespace, name } = self.key();
        index.other_policies.entry(kind).or_default().insert((namespace, name), self);
    }

    fn remove(index: &mut Index, key: &Key) {
        if let Some(policies) = index.other_policies.get_mut(&key.kind) {
            policies.remove(&(key.namespace.clone(), key.name.clone()));
            if policies.is_empty() {
                index.other_policies.remove(&key.kind);
            }
        }
    }

    fn with_kind(self, kind: &Kind) -> OtherPolicy {
        match kind {
            Kind::OtherPolicy { group, kind } => OtherPolicy { group: group.clone(), kind: kind.clone(), ..self },
            _ => self,
        }
    }
}
