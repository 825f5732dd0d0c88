//! What the cluster says: sources (manifest files, an API server) fill one [`Index`] of our own model types.
//!
//! ```text
//! manifests (files) ─┐
//!                    ├─> decode (k8s-openapi → model) ─> Index ─> enrich, verdict
//! api server ────────┘
//! ```
//!
//! Only this module names the Kubernetes API types or client: everything downstream sees [`model`] and [`Index`].

pub mod index;
pub mod model;

pub use index::Index;
