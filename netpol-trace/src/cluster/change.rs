//! What a source tells of the cluster: changes of objects, by key.

use crate::model::Str;
use crate::model::cluster::{Object, Pod};

/// What became of objects. A source tells changes in their order; which kinds come first does not matter.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// New, or changed: replaces the object with its key.
    Upsert(Object),
    Delete(Key),
    /// A list: what the scope holds now. What isn't in it is gone; what didn't change stays as it is.
    Replace(Scope, Vec<Object>),
    /// A list that was told in parts is complete: what is new of the kind since then really is new.
    Listed(Kind),
}

/// The kinds of objects that the index keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Node,
    /// Pods, and the pod templates of workloads.
    Pod,
    /// networking.k8s.io NetworkPolicy.
    Policy,
    Service,
    EndpointSlice,
    /// One kind of policy that is not evaluated here.
    OtherPolicy {
        group: Str,
        kind: Str,
    },
}

/// An object by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub kind: Kind,
    pub namespace: Option<Str>,
    /// Of a workload's pod template `kind/name`, which no pod can be called.
    pub name: Str,
}

/// What one list covers: all objects of a kind or, of pods, those on one node (a pod without a node is on none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub kind: Kind,
    pub node: Option<Str>,
}

impl Scope {
    /// The pods on `node`.
    pub fn pods_on(node: Str) -> Scope {
        Scope { kind: Kind::Pod, node: Some(node) }
    }
}

impl From<Kind> for Scope {
    fn from(kind: Kind) -> Scope {
        Scope { kind, node: None }
    }
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
            Object::Pod(_) => Kind::Pod,
            Object::Policy(_) => Kind::Policy,
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::OtherPolicy(o) => Kind::OtherPolicy { group: o.group.clone(), kind: o.kind.clone() },
        }
    }

    pub fn key(&self) -> Key {
        let (namespace, name) = match self {
            Object::Namespace(o) => (None, o.name.clone()),
            Object::Node(o) => (None, o.name.clone()),
            Object::Pod(o) => (Some(o.namespace.clone()), o.key()),
            Object::Policy(o) => (Some(o.namespace.clone()), o.name.clone()),
            Object::Service(o) => (Some(o.namespace.clone()), o.name.clone()),
            Object::EndpointSlice(o) => (Some(o.namespace.clone()), o.name.clone()),
            Object::OtherPolicy(o) => (o.namespace.clone(), o.name.clone()),
        };
        Key { kind: self.kind(), namespace, name }
    }
}

impl Pod {
    /// Its name in its namespace; of a template `kind/name`.
    pub fn key(&self) -> Str {
        match &self.owner {
            Some(owner) if self.template => format!("{}/{}", owner.kind, self.name).into(),
            _ => self.name.clone(),
        }
    }
}
