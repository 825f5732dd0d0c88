//! The tests' control plane: it starts, keeps objects, and leaves no processes or files.

use anyhow::Result;
use netpol_trace_tests::cluster::api::Api;
use netpol_trace_tests::cluster::control_plane::{self, ControlPlane};
use netpol_trace_tests::cluster::daemon::Lifetime;
use netpol_trace_tests::{cluster, require};
use serde_json::json;

/// Does what `cargo xtask cluster up` and `down` do, with a restart between.
#[test]
fn a_detached_control_plane_outlives_a_restart_and_ends_by_its_list() -> Result<()> {
    require!(cluster::can_run(&[]));
    let dir = tempfile::tempdir()?;
    let dir = dir.path().join("state");
    let mut plane = ControlPlane::start(&dir, Lifetime::Detached)?;
    plane.write_processes()?;
    plane.namespace("kept", &json!({ "of": "before" }))?;
    let first = plane.server.pid();
    plane.restart_server()?;
    plane.write_processes()?;
    assert_ne!(plane.server.pid(), first);
    let kept = Api::connect(&plane.kubeconfig())?.get("/api/v1/namespaces/kept")?;
    assert_eq!(kept["metadata"]["labels"]["of"], "before");

    assert_eq!(control_plane::running(&dir)?.len(), 2);
    let ended = control_plane::stop(&dir)?;
    assert_eq!(ended.len(), 2);
    assert!(!plane.etcd.is_alive() && !plane.server.is_alive());
    assert!(!dir.exists());
    assert!(control_plane::stop(&dir)?.is_empty());
    Ok(())
}

/// A ServiceAccount's token works and has no rights but those given.
#[test]
fn a_service_account_has_only_its_rights() -> Result<()> {
    require!(cluster::can_run(&[]));
    let plane = netpol_trace_tests::cluster::shared()?;
    plane.namespace("accounts", &json!({}))?;
    let metadata = json!({ "namespace": "accounts", "name": "reader" });
    plane.api().apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }))?;
    plane.api().apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": "reader" },
        "rules": [{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["list"] }],
    }))?;
    plane.api().apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": "reader" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader" },
        "subjects": [{ "kind": "ServiceAccount", "namespace": "accounts", "name": "reader" }],
    }))?;
    let reader = Api::connect(&plane.account_kubeconfig("accounts", "reader")?)?;
    // The authorizer sees the binding by a watch of its own.
    netpol_trace_tests::eventually("the right to list nodes", || Ok(reader.get("/api/v1/nodes").ok()))?;
    let error = format!("{:#}", reader.get("/api/v1/pods").unwrap_err());
    assert!(error.contains("pods is forbidden") && error.contains("system:serviceaccount:accounts:reader"), "{error}");
    Ok(())
}
