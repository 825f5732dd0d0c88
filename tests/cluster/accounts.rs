//! Service accounts, their rights and their tokens.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use netpol_trace_tests::PATIENCE;
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
/// The ServiceAccount whose tokens developers use.
pub const READER: &str = "netpol-trace-reader";

pub fn account(plane: &ControlPlane, namespace: &str, name: &str) -> Result<()> {
    let metadata = json!({ "namespace": namespace, "name": name });
    plane.api().apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata })).map(drop)
}

pub fn bind(
    plane: &ControlPlane,
    name: &str,
    namespace: Option<&str>,
    role: (&str, &str),
    to: (&str, &str),
) -> Result<()> {
    let (kind, metadata) = match namespace {
        Some(namespace) => ("RoleBinding", json!({ "name": name, "namespace": namespace })),
        None => ("ClusterRoleBinding", json!({ "name": name })),
    };
    let object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1 },
        "subjects": [{ "kind": "ServiceAccount", "namespace": to.0, "name": to.1 }],
    });
    plane.api().apply(&object).map(drop)
}

/// The published roles, with another namespace for the agents.
pub fn roles(plane: &ControlPlane, agents: &str) -> Result<()> {
    let base = include_str!("../../deploy/kustomize/base/rbac.yaml");
    let tail = include_str!("../../deploy/kustomize/components/tail/roles.yaml");
    let tail = tail.replace("namespace: netpol-trace", &format!("namespace: {agents}"));
    for document in base.split("\n---\n").chain(tail.split("\n---\n")) {
        let path = match document.lines().find(|line| line.starts_with("kind: ")) {
            Some("kind: ClusterRole") => format!("{RBAC}/clusterroles"),
            Some("kind: Role") => format!("{RBAC}/namespaces/{agents}/roles"),
            // The tests bind their own accounts.
            _ => continue,
        };
        plane.api().create_yaml(&path, document)?;
    }
    Ok(())
}

/// The published account of a namespace's developers, with its binding.
pub fn reader(plane: &ControlPlane, namespace: &str) -> Result<()> {
    let manifest = include_str!("../../deploy/kustomize/developer-namespace/reader.yaml");
    let (account, binding) = manifest.split_once("\n---\n").context("two objects")?;
    plane.api().create_yaml(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), account)?;
    plane.api().create_yaml(&format!("{RBAC}/namespaces/{namespace}/rolebindings"), binding)
}

/// A token for an audience, or for the API server itself.
pub fn token(plane: &ControlPlane, namespace: &str, name: &str, audience: Option<&str>) -> Result<String> {
    let spec = audience.map_or_else(|| json!({}), |audience| json!({ "audiences": [audience] }));
    let asked = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
    let made = plane.api().post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"), &asked)?;
    Ok(made.pointer("/status/token").and_then(Value::as_str).context("a token")?.to_owned())
}

/// Sends a GET with this token to a listener of the agent and returns head and body.
pub fn ask(address: SocketAddr, path: &str, token: Option<&str>) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n{token}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
