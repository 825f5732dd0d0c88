//! Objects of lists and watches, decoded into the model while they are read.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};

use super::super::resource::Resource;
use super::Checked;
use crate::model::Str;

/// One object of a list or a watch. `W` is the type that it is read as.
#[derive(Debug)]
pub(in crate::cluster) struct WireObject<R: Resource, W = <R as Resource>::Wire> {
    pub namespace: Option<Str>,
    pub name: Str,
    /// `metadata.resourceVersion`.
    pub version: String,
    pub decoded: Checked<R>,
    wire: PhantomData<fn() -> W>,
}

// Without derive, which would ask for `W: Clone`.
impl<R: Resource, W> Clone for WireObject<R, W> {
    fn clone(&self) -> WireObject<R, W> {
        let WireObject { namespace, name, version, decoded, wire } = self;
        WireObject {
            namespace: namespace.clone(),
            name: name.clone(),
            version: version.clone(),
            decoded: decoded.clone(),
            wire: *wire,
        }
    }
}

impl<'de, R: Resource, W: DeserializeOwned + Into<R::Api>> Deserialize<'de> for WireObject<R, W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WireObject<R, W>, D::Error> {
        let api: R::Api = W::deserialize(deserializer)?.into();
        let meta = R::metadata(&api);
        Ok(WireObject {
            namespace: meta.namespace.as_deref().map(Into::into),
            name: meta.name.as_deref().unwrap_or_default().into(),
            version: meta.resource_version.clone().unwrap_or_default(),
            decoded: R::decode(&api),
            wire: PhantomData,
        })
    }
}

/// The fields of an object's metadata that are used.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MetadataWire {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
}

/// The metadata of an object whose annotations are used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AnnotatedWire {
    annotations: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    rest: MetadataWire,
}

/// Reads an object's metadata without `managedFields` and annotations, which are most of it.
pub(in crate::cluster) fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    Ok(MetadataWire::deserialize(deserializer)?.into())
}

/// Reads an object's metadata with its annotations.
pub(in crate::cluster) fn metadata_with_annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ObjectMeta, D::Error> {
    let AnnotatedWire { annotations, rest } = AnnotatedWire::deserialize(deserializer)?;
    Ok(ObjectMeta { annotations, ..rest.into() })
}

impl From<MetadataWire> for ObjectMeta {
    fn from(meta: MetadataWire) -> ObjectMeta {
        ObjectMeta {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            resource_version: meta.resource_version,
            labels: meta.labels,
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            owner_references: meta.owner_references,
            ..ObjectMeta::default()
        }
    }
}
