//! What a Kubernetes kind needs for the index to hold its objects: one [`Resource`] implementation, in a file of `kinds/`.

use std::marker::PhantomData;

use futures::future::{BoxFuture, LocalBoxFuture};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use super::api::{ApiConnection, ApiError, Collection, Need, Reflector, Snapshot, watch};
use super::change::{Key, Scope};
use super::decode::{Checked, ObjectReader};
use super::index::Index;
use super::kinds::{Kind, Object};

/// One Kubernetes kind: how its objects are decoded, and how the index holds them. Implemented by the kind's model type.
///
/// The index holds objects by kind and key, unless the kind has a structure of its own and overrides `get`, `keys`, `insert`
/// and `remove`.
pub(in crate::cluster) trait Resource: ObjectVariant + Clone + PartialEq + Send + 'static {
    /// The kind's type in the Kubernetes API. Files are read as this type, so that unknown fields are noticed.
    type Api: DeserializeOwned;
    /// The fields of `Api` that are used. Lists and watches read nothing else: no list of whole pods is ever in memory.
    type Wire: DeserializeOwned + Into<Self::Api>;

    fn metadata(api: &Self::Api) -> &ObjectMeta;

    /// Checks what the API server would check of the fields that are used.
    fn decode(api: &Self::Api) -> Checked<Self>;

    fn key(&self) -> Key;

    /// The object that the index holds under `key`.
    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a Self> {
        index.objects.get(&key.kind)?.get(&(key.namespace.clone(), key.name.clone())).and_then(Self::of)
    }

    /// The keys of the objects that the index holds of `scope`.
    fn keys<'a>(index: &'a Index, scope: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        Box::new(index.objects_of::<Self>(&scope.kind).map(Resource::key))
    }

    /// Adds the object, or replaces the one with its key, without history.
    fn insert(self, index: &mut Index) {
        let Key { kind, namespace, name } = self.key();
        index.objects.entry(kind).or_default().insert((namespace, name), self.into());
    }

    /// Removes the object, if the index holds it, without history.
    fn remove(index: &mut Index, key: &Key) {
        if let Some(objects) = index.objects.get_mut(&key.kind) {
            objects.remove(&(key.namespace.clone(), key.name.clone()));
            if objects.is_empty() {
                index.objects.remove(&key.kind);
            }
        }
    }

    /// Adds or replaces the object as of `at`. A kind whose past matters to verdicts also records what it replaces.
    /// `listed` is false during the first list: a new object is then not a change of the cluster.
    fn put(self, index: &mut Index, _at: Timestamp, _listed: bool) {
        if Self::get(index, &self.key()) != Some(&self) {
            index.upsert(self.into());
        }
    }

    /// Removes the object as of `at`. A kind whose past matters to verdicts also records what it removes.
    fn take(index: &mut Index, key: &Key, _at: Timestamp) {
        index.remove(key);
    }

    /// Sets the kind of an object that was read without its kind.
    fn with_kind(self, _kind: &Kind) -> Self {
        self
    }
}

/// A type that [`Object`] has a variant for.
pub(in crate::cluster) trait ObjectVariant: Into<Object> + Sized {
    fn of(object: &Object) -> Option<&Self>;
}

/// A kind's place in the Kubernetes API, and what the program does with its objects.
#[derive(Debug)]
pub(in crate::cluster) struct KindInfo {
    /// As in a manifest: `v1`, `networking.k8s.io/v1`.
    pub api_version: &'static str,
    pub name: &'static str,
    /// The name in URLs and RBAC rules.
    pub plural: &'static str,
    /// The RBAC verbs that the agent uses on the kind.
    pub verbs: &'static [&'static str],
    pub watched: Watched,
    /// Whether a subcommand that reads a cluster once fails when it may not read the kind, or only warns.
    pub need: Need,
    /// Its objects isolate pods. One that cannot be decoded makes the source stale: verdicts without it are wrong.
    pub is_policy: bool,
    /// Messages name the lines of its fields, so the lines are kept. Costs memory for each field.
    pub keeps_lines: bool,
}

impl KindInfo {
    pub const DEFAULT: KindInfo = KindInfo {
        api_version: "v1",
        name: "",
        plural: "",
        verbs: &["list", "watch"],
        watched: Watched::Always,
        need: Need::ForMore,
        is_policy: false,
        keeps_lines: false,
    };

    /// The API group, empty for the core group, and the version.
    pub fn group_version(&self) -> (&'static str, &'static str) {
        self.api_version.split_once('/').unwrap_or(("", self.api_version))
    }
}

/// When the agent watches a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cluster) enum Watched {
    Always,
    /// All objects or this node's, by `--peers`.
    ByPeers,
    /// While the API server has the kind's CRD.
    WhereServed,
}

/// [`Resource`] without its type, for the list of kinds.
pub(in crate::cluster) trait AnyResource: Sync {
    fn keys<'a>(&self, index: &'a Index, scope: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a>;
    fn remove(&self, index: &mut Index, key: &Key);
    fn take(&self, index: &mut Index, key: &Key, at: Timestamp);
    /// Decodes an object of a file.
    fn read(&self, reader: &mut ObjectReader<'_, '_>);
    /// Lists and watches until dropped or, if the kind can go with its CRD (`may_end`), until it is gone.
    fn watch(
        &self,
        connection: ApiConnection,
        collection: Collection,
        reflector: Reflector,
        may_end: bool,
    ) -> BoxFuture<'static, ()>;
    /// Lists once, for a subcommand.
    fn list<'a>(
        &self,
        snapshot: &'a mut Snapshot,
        kind: &'a Kind,
        collection: &'a Collection,
        need: Need,
    ) -> LocalBoxFuture<'a, Result<(), ApiError>>;
}

pub(in crate::cluster) struct Typed<R>(pub PhantomData<fn() -> R>);

impl<R: Resource> AnyResource for Typed<R> {
    fn keys<'a>(&self, index: &'a Index, scope: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        R::keys(index, scope)
    }

    fn remove(&self, index: &mut Index, key: &Key) {
        R::remove(index, key);
    }

    fn take(&self, index: &mut Index, key: &Key, at: Timestamp) {
        R::take(index, key, at);
    }

    fn read(&self, reader: &mut ObjectReader<'_, '_>) {
        reader.typed(|api: &R::Api| R::decode(api).map(Into::into));
    }

    fn watch(
        &self,
        connection: ApiConnection,
        collection: Collection,
        reflector: Reflector,
        may_end: bool,
    ) -> BoxFuture<'static, ()> {
        Box::pin(watch::run::<R>(connection, collection, reflector, may_end))
    }

    fn list<'a>(
        &self,
        snapshot: &'a mut Snapshot,
        kind: &'a Kind,
        collection: &'a Collection,
        need: Need,
    ) -> LocalBoxFuture<'a, Result<(), ApiError>> {
        Box::pin(snapshot.objects::<R>(kind, collection, need))
    }
}
