//! Changes of objects, as sources report them to the index.

use super::kinds::{Kind, Object};
use crate::model::Str;

/// A change that a source reports. A source reports changes in their order; the order of kinds does not matter.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// New, or changed: replaces the object with its key.
    Upsert(Object),
    Delete(Key),
    /// A complete list of the scope. Objects of the index that the list lacks are removed.
    Replace(Scope, Vec<Object>),
    /// A list that was applied in parts is complete: an object of the kind that comes later is a change of the cluster.
    Listed(Kind),
}

/// The name of an object in the index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub kind: Kind,
    pub namespace: Option<Str>,
    /// [`Pod::unique_name`](crate::model::cluster::Pod::unique_name) for pods.
    pub name: Str,
}

/// What one list covers: all objects of a kind, or the pods on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub kind: Kind,
    pub node: Option<Str>,
}

impl Scope {
    pub fn pods_on(node: Str) -> Scope {
        Scope { kind: Kind::Pod, node: Some(node) }
    }
}

impl From<Kind> for Scope {
    fn from(kind: Kind) -> Scope {
        Scope { kind, node: None }
    }
}
