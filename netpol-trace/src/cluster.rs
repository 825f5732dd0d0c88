//! What the cluster says: sources (manifest files, an API server) fill one [`Index`] of our own model types.
//!
//! ```text
//! manifests (files) ─┐
//!                    ├─> decode (k8s-openapi → model) ─> Index ─> enrich, verdict
//! api server ────────┘
//! ```
//!
//! Only this module names the Kubernetes API types or client: everything downstream sees [`model`] and [`Index`].

pub mod access_review;
pub mod agents;
pub mod api;
mod budget;
pub mod change;
pub mod decode;
pub mod events;
pub mod index;
pub mod manifests;

pub mod location;
pub mod source;
pub mod yaml;

pub use change::{Change, Key, Kind, Scope};
pub use index::Index;
pub use source::{Cluster, SourceStatus};
