//! The cluster's state: a source (manifest files or an API server) fills one [`Index`] of model types.
//!
//! ```text
//! manifests (files) ─┐
//!                    ├─> kinds (k8s-openapi → model) ─> Index ─> enrich, verdict
//! api server ────────┘
//! ```
//!
//! Only this module names the Kubernetes API types and client. Everything downstream reads [`model`](crate::model) and
//! [`Index`].

pub mod access_review;
pub mod agents;
pub mod api;
mod budget;
pub mod change;
pub(crate) mod decode;
pub mod events;
pub mod index;
mod kinds;
pub mod location;
pub mod manifests;
mod resource;
pub mod source;
pub mod yaml;

pub use change::{Change, Key, Scope};
pub use index::Index;
pub use kinds::{Kind, Object};
pub use source::{Cluster, SourceStatus};
