//! The manifests in `deploy/`, as kustomize, helm and the agent see them.

mod alerts;
mod chart;
mod collectors;
mod container;
mod install;
mod manifests;
mod options;
mod render;
mod rights;
mod server;
