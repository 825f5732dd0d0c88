//! The manifests in `deploy/`, as kustomize, helm and the agent see them.

mod chart;
mod container;
mod manifests;
mod options;
mod render;
mod server;
