//! Policies of APIs that are not evaluated: only their names are read.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::super::change::Key;
use super::super::decode::{Checked, wire};
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

    fn with_kind(self, kind: &Kind) -> OtherPolicy {
        match kind {
            Kind::OtherPolicy { group, kind } => OtherPolicy { group: group.clone(), kind: kind.clone(), ..self },
            _ => self,
        }
    }
}
