//! The list of kinds that the index holds. Each has its [`Resource`](super::resource::Resource) in a file of its own; sources,
//! index, RBAC check and messages take the kinds from this list.

mod endpoint_slice;
mod namespace;
pub(in crate::cluster) mod node;
mod other_policy;
pub(in crate::cluster) mod pod;
mod policy;
mod service;
pub(in crate::cluster) mod workload;

use std::marker::PhantomData;

use jiff::Timestamp;

use super::change::Key;
use super::index::Index;
use super::resource::{AnyResource, KindInfo, ObjectVariant, Resource, Typed};
use crate::model::Str;
use crate::model::cluster::{EndpointSlice, Namespace, Node, OtherPolicy, Pod, Policy, Service};

macro_rules! kinds {
    ($($kind:ident: $module:ident,)+) => {
        /// One object of any kind that the index holds.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Object {
            $($kind($kind),)+
            OtherPolicy(OtherPolicy),
        }

        /// The kinds of objects that the index holds.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($kind,)+
            /// One kind of policy that is not evaluated.
            OtherPolicy { group: Str, kind: Str },
        }

        /// The kinds that are read in full, with their place in the API. Policies come before pods: a load then matches
        /// each pod once instead of once for each policy.
        pub(in crate::cluster) static KINDS: &[KindEntry] = &[
            $(KindEntry { kind: Kind::$kind, info: &$module::INFO, resource: &Typed::<$kind>(PhantomData) },)+
        ];

        impl Kind {
            /// `None` for policies that are not evaluated: they have no fixed place in the API.
            pub(in crate::cluster) fn info(&self) -> Option<&'static KindInfo> {
                match self {
                    $(Kind::$kind => Some(&$module::INFO),)+
                    Kind::OtherPolicy { .. } => None,
                }
            }

            pub(in crate::cluster) fn resource(&self) -> &'static dyn AnyResource {
                match self {
                    $(Kind::$kind => &Typed::<$kind>(PhantomData),)+
                    Kind::OtherPolicy { .. } => &Typed::<OtherPolicy>(PhantomData),
                }
            }
        }

        impl Object {
            pub fn key(&self) -> Key {
                match self {
                    $(Object::$kind(object) => Resource::key(object),)+
                    Object::OtherPolicy(object) => Resource::key(object),
                }
            }

            pub(in crate::cluster) fn insert(self, index: &mut Index) {
                match self {
                    $(Object::$kind(object) => object.insert(index),)+
                    Object::OtherPolicy(object) => object.insert(index),
                }
            }

            pub(in crate::cluster) fn put(self, index: &mut Index, at: Timestamp, listed: bool) {
                match self {
                    $(Object::$kind(object) => object.put(index, at, listed),)+
                    Object::OtherPolicy(object) => object.put(index, at, listed),
                }
            }
        }

        $(object_variant!($kind);)+
    };
}

macro_rules! object_variant {
    ($kind:ident) => {
        impl From<$kind> for Object {
            fn from(object: $kind) -> Object {
                Object::$kind(object)
            }
        }

        impl ObjectVariant for $kind {
            fn of(object: &Object) -> Option<&$kind> {
                match object {
                    Object::$kind(object) => Some(object),
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    Namespace: namespace,
    Policy: policy,
    Pod: pod,
    Node: node,
    Service: service,
    EndpointSlice: endpoint_slice,
}

object_variant!(OtherPolicy);

/// Policies of other APIs, which are not evaluated: group, kind, and the name in URLs. A kind that becomes evaluated moves
/// from here to [`KINDS`].
pub(in crate::cluster) const OTHER_POLICIES: [(&str, &str, &str); 9] = [
    ("policy.networking.k8s.io", "AdminNetworkPolicy", "adminnetworkpolicies"),
    ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies"),
    ("policy.networking.k8s.io", "ClusterNetworkPolicy", "clusternetworkpolicies"),
    ("projectcalico.org", "NetworkPolicy", "networkpolicies"),
    ("projectcalico.org", "GlobalNetworkPolicy", "globalnetworkpolicies"),
    ("crd.projectcalico.org", "NetworkPolicy", "networkpolicies"),
    ("crd.projectcalico.org", "GlobalNetworkPolicy", "globalnetworkpolicies"),
    ("cilium.io", "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
    ("cilium.io", "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies"),
];

/// One line of [`KINDS`].
pub(in crate::cluster) struct KindEntry {
    pub kind: Kind,
    pub info: &'static KindInfo,
    pub resource: &'static dyn AnyResource,
}

impl Kind {
    /// As in a manifest's `kind`.
    pub fn name(&self) -> &str {
        match self {
            Kind::OtherPolicy { kind, .. } => kind,
            kind => kind.info().map_or("", |info| info.name),
        }
    }

    pub(in crate::cluster) fn is_policy(&self) -> bool {
        self.info().is_some_and(|info| info.is_policy)
    }
}

impl Object {
    pub fn kind(&self) -> Kind {
        self.key().kind
    }

    /// Kind, namespace (empty for cluster-scoped kinds) and name, for messages. A workload's template has the workload's kind.
    pub fn identity(&self) -> (&'static str, Str, Str) {
        match self {
            Object::Pod(pod) if pod.template => (workload::kind_of(pod), pod.namespace.clone(), pod.name.clone()),
            Object::OtherPolicy(policy) => {
                let name = format!("{}/{}/{}", policy.group, policy.kind, policy.name);
                ("OtherPolicy", policy.namespace.clone().unwrap_or_default(), name.into())
            }
            object => {
                let key = object.key();
                (key.kind.info().map_or("", |info| info.name), key.namespace.unwrap_or_default(), key.name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::change::{Change, Scope};
    use super::super::manifests;
    use super::*;

    /// One object of each kind, and a template.
    const OBJECTS: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: x}}
- {apiVersion: v1, kind: Node, metadata: {name: node-1}, spec: {podCIDR: 10.1.0.0/24}}
- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: x}, status: {podIP: 10.1.0.1}}
- {apiVersion: v1, kind: Service, metadata: {name: s, namespace: x}, spec: {clusterIP: 10.2.0.1, ports: [{port: 80}]}}
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np, namespace: x}, spec: {podSelector: {}}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: s-1, namespace: x}, endpoints: []}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: x}, spec: {selector: {}, template: {}}}
- {apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: c, namespace: x}}
"#;

    fn objects() -> Vec<Object> {
        let loaded = manifests::load_bytes("x", OBJECTS.as_bytes());
        assert_eq!(loaded.error().map(ToString::to_string), None);
        loaded.objects.into_iter().map(|located| located.object).collect()
    }

    fn keys(index: &Index, kind: &Kind) -> Vec<Key> {
        let scope = Scope::from(kind.clone());
        kind.resource().keys(index, &scope).collect()
    }

    #[test]
    fn the_index_holds_an_object_of_each_kind_until_it_is_removed() {
        let objects = objects();
        for entry in KINDS {
            assert!(objects.iter().any(|object| object.kind() == entry.kind), "no {} in the test", entry.info.name);
        }
        for object in objects {
            let (kind, key) = (object.kind(), object.key());
            let mut index = Index::default();
            index.apply(vec![Change::Upsert(object.clone())], Timestamp::UNIX_EPOCH);
            assert_eq!(keys(&index, &kind), std::slice::from_ref(&key));
            let version = index.version();
            index.apply(vec![Change::Upsert(object)], Timestamp::UNIX_EPOCH);
            assert_eq!(index.version(), version, "{key:?}: the same object again is no change");
            for other in KINDS.iter().filter(|entry| entry.kind != kind) {
                assert_eq!(keys(&index, &other.kind), [], "{key:?} is also held as {:?}", other.kind);
            }
            index.apply(vec![Change::Replace(kind.clone().into(), Vec::new())], Timestamp::UNIX_EPOCH);
            assert_eq!(keys(&index, &kind), []);
            assert_eq!(index.namespaces().count(), 0, "{key:?}: a list without the object removes its namespace too");
        }
    }

    #[test]
    fn a_kind_has_one_line_in_the_lists() {
        let infos =
            KINDS.iter().map(|entry| entry.info).chain(workload::WORKLOADS.iter().map(|workload| &workload.info));
        let mut names: Vec<(&str, &str)> = infos.map(|info| (info.group_version().0, info.name)).collect();
        names.extend(OTHER_POLICIES.iter().map(|(group, kind, _)| (*group, *kind)));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }
}
