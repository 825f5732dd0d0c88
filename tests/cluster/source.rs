//! The agent with the API server as its source: what it knows, when, and what it reports if it can't.

mod failure;
mod in_cluster;
mod load;
mod lookup;
mod reuse;
mod rights;
mod shapes;
mod subcommands;
mod sync;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::daemon::Lifetime;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::traffic;
use serde_json::{Value, json};

/// A control plane that its test may kill, and two pods whose packets are dropped.
pub struct ApiLab {
    pub plane: ControlPlane,
    pub pair: Pair,
    _alone: MutexGuard<'static, ()>,
}

/// The namespace of the pair's pods, and the node that the agent runs on.
const NAMESPACE: &str = "lab";
const NODE: &str = "node-a";

impl ApiLab {
    /// `lab/client` and `lab/server` on node-a, the policy `lab/deny-server`, and their control plane.
    pub fn start() -> Result<ApiLab> {
        let api_lab = ApiLab::empty()?;
        api_lab.apply(&node(NODE, "172.18.0.2", "10.244.1.0/24"))?;
        api_lab.apply(&pod("client", NODE, &[CLIENT.into()]))?;
        api_lab.apply(&pod("server", NODE, &[SERVER.into()]))?;
        api_lab.apply(&policy("deny-server", "server"))?;
        Ok(api_lab)
    }

    /// Only the namespace.
    pub fn empty() -> Result<ApiLab> {
        static ALONE: Mutex<()> = Mutex::new(());
        // Two API servers at once are enough for a small machine: this one, and the one that other tests share.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new().prefix("netpol-trace-source-").tempdir()?.keep();
        let plane = ControlPlane::start(&dir, Lifetime::OfThisProgram)?;
        let api_lab = ApiLab { plane, pair: Pair::start(DENY)?, _alone: alone };
        api_lab.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }))?;
        Ok(api_lab)
    }

    pub fn apply(&self, object: &Value) -> Result<Value> {
        self.plane.api().apply(object)
    }

    pub fn delete(&self, object: &Value) -> Result<()> {
        self.plane.api().delete(object)
    }

    /// Starts the agent on node-a, with all rights.
    pub fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        let kubeconfig = self.plane.kubeconfig().display().to_string();
        let own = ["--all-drops", "--node-name", NODE, "--kubeconfig", &kubeconfig];
        Agent::start(&[&own, arguments].concat())
    }

    /// Sends a packet from client to server that is dropped, and returns its record.
    pub fn send(&self, agent: &Agent) -> Result<Record> {
        let source = traffic::udp(&self.pair.client()?.netns, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
        let mine = |r: &Record| r.is_drop() && self.pair.lab.owns(r) && r.address("source") == Some(source);
        agent.wait_for("the record of the packet sent", |records| records.iter().any(mine))?;
        agent.records().into_iter().find(mine).context("it was there")
    }
}

impl Drop for ApiLab {
    fn drop(&mut self) {
        let _ = self.plane.server.kill();
        let _ = self.plane.etcd.kill();
        let _ = std::fs::remove_dir_all(self.plane.dir());
    }
}

pub fn node(name: &str, ip: &str, pod_cidr: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": pod_cidr, "podCIDRs": [pod_cidr] },
        "status": { "addresses": [{ "type": "InternalIP", "address": ip }] },
    })
}

/// A running pod with label `app` set to its name.
pub fn pod(name: &str, node: &str, ips: &[IpAddr]) -> Value {
    let all: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": NAMESPACE, "name": name, "labels": { "app": name } },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "registry.example/lab:1" }] },
        "status": { "phase": "Running", "podIP": ips.first(), "podIPs": all },
    })
}

/// A policy that isolates the ingress of pods `app=…` and allows nothing.
pub fn policy(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": NAMESPACE, "name": name },
        "spec": { "podSelector": { "matchLabels": { "app": app } }, "policyTypes": ["Ingress"] },
    })
}

/// The source with this name in the latest status.
pub fn source(records: &[Record], name: &str) -> Option<Value> {
    let status = records.iter().rev().find(|record| record.kind() == "status")?;
    status.list("/sources").iter().find(|source| source["name"] == name).cloned()
}

/// True if every source of the latest status is in sync and has no error.
pub fn in_sync(records: &[Record]) -> bool {
    let status = records.iter().rev().find(|record| record.kind() == "status");
    let good = |source: &Value| source["synced"] == true && source["error"].is_null();
    status.is_some_and(|status| !status.list("/sources").is_empty() && status.list("/sources").iter().all(good))
}
