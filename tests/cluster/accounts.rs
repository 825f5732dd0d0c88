//! Service accounts, their rights and their tokens.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use netpol_trace_tests::PATIENCE;
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use serde_json::{Value, json};

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

/// A token for an audience, or for the API server itself.
pub fn token(plane: &ControlPlane, namespace: &str, name: &str, audience: Option<&str>) -> Result<String> {
    let spec = audience.map_or_else(|| json!({}), |audience| json!({ "audiences": [audience] }));
    let asked = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
    let made = plane.api().post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"), &asked)?;
    Ok(made.pointer("/status/token").and_then(Value::as_str).context("a token")?.to_owned())
}

/// What a listener of the agent answers to a GET with this token, head and body.
pub fn ask(address: SocketAddr, path: &str, token: Option<&str>) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n{token}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
