//! What agents cost a real API server, and what a cluster's size costs an agent: requests, bytes, the server's processor
//! time, resident memory.

use std::cell::Cell;
use std::env;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netpol_trace::cluster::Cluster;
use netpol_trace::cluster::api::{self, Access, Lookups, Options, Peers};
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::daemon::Lifetime;
use netpol_trace_tests::cluster::skip;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Pods of a node.
const PODS_PER_NODE: usize = 30;
/// Changes of pods' statuses while agents watch.
const CHANGES_PER_SECOND: u32 = 20;
const CHURN: Duration = Duration::from_secs(20);
const AGENTS: [usize; 3] = [1, 10, 50];
/// How long many agents may take that start at once.
const MANY_PATIENCE: Duration = Duration::from_secs(900);
/// Requests that are under way at once while the cluster is filled.
const PARALLEL: usize = 16;
const LOOKUPS: u32 = 100;
/// For a quick look: no stage with more pods than this.
const MOST: &str = "NETPOL_TRACE_BENCH_PODS";

fn main() -> Result<()> {
    if skip("api", &[]) {
        return Ok(());
    }
    let most: usize = env::var(MOST).ok().map(|text| text.parse()).transpose().context(MOST)?.unwrap_or(100_000);
    let dir = tempfile::tempdir()?;
    let plane = ControlPlane::start(&dir.path().join("state"), Lifetime::OfThisProgram)?;
    let mut cluster = Filled { plane: &plane, pods: 0, changes: Cell::new(0) };
    let size = |pods: usize| pods.min(most);

    cluster.grow(size(1_000))?;
    cluster.policies(500)?;
    println!("\nMemory of one agent, MiB resident (of it not the program file)");
    println!("{:>8} pods, {:<28} {}", size(1_000), "500 policies, watch, at rest", cluster.memory("watch", false)?);
    println!("{:>8} pods, {:<28} {}", size(1_000), "500 policies, watch, churn", cluster.memory("watch", true)?);
    println!("{:>8} pods, {:<28} {}", size(1_000), "500 policies, lookup, at rest", cluster.memory("lookup", false)?);

    cluster.grow(size(5_000))?;
    println!("\nLoad of the API server at {} pods, per agent", size(5_000));
    println!(
        "start: until in sync; churn: {CHANGES_PER_SECOND} pod changes a second, less what they cost without agents"
    );
    println!(
        "{:<8} {:>6} | {:>9} {:>11} {:>9} | {:>9} {:>11} {:>9}",
        "mode", "agents", "requests", "bytes", "CPU ms", "requests", "bytes/s", "CPU ms/s"
    );
    let baseline = cluster.churned()?;
    for mode in ["lookup", "watch"] {
        for agents in AGENTS {
            cluster.load(mode, agents, &baseline)?;
        }
    }

    cluster.grow(size(50_000))?;
    println!("\nOne lookup of a pod by its IP, and then by name");
    let by_ip = |n| format!("status.podIP%3D{}%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed", ip(n));
    println!("{:>8} pods, list by status.podIP:  {}", size(50_000), cluster.lookups(by_ip)?);
    let by_node = |n| format!("spec.nodeName%3D{}", node_name(n / PODS_PER_NODE));
    println!("{:>8} pods, list by spec.nodeName: {}", size(50_000), cluster.lookups(by_node)?);

    cluster.grow(size(100_000))?;
    println!("\nMemory of one agent, MiB resident (of it not the program file)");
    println!("{:>8} pods, {:<28} {}", size(100_000), "watch", cluster.memory("watch", false)?);
    println!("{:>8} pods, {:<28} {}", size(100_000), "lookup", cluster.memory("lookup", false)?);
    Ok(())
}

struct Filled<'a> {
    plane: &'a ControlPlane,
    pods: usize,
    /// No status is set twice: the server would have nothing to tell.
    changes: Cell<usize>,
}

/// What the API server says of itself at a moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    requests: f64,
    bytes: f64,
    cpu_seconds: f64,
}

/// What it did between two moments.
#[derive(Debug, Clone, Copy)]
struct Spent {
    seconds: f64,
    requests: f64,
    bytes: f64,
    cpu_seconds: f64,
}

impl Reading {
    fn until(&self, later: &Reading) -> Spent {
        Spent {
            seconds: (later.at - self.at).as_secs_f64(),
            requests: later.requests - self.requests,
            bytes: later.bytes - self.bytes,
            cpu_seconds: later.cpu_seconds - self.cpu_seconds,
        }
    }
}

impl Filled<'_> {
    /// Adds pods, on as many nodes as they need.
    fn grow(&mut self, pods: usize) -> Result<()> {
        let begin = Instant::now();
        let new: Vec<usize> = (self.pods..pods).collect();
        for namespace in 0..new.len().min(100) {
            self.plane.namespace(&format!("team-{namespace}"), &json!({ "team": namespace.to_string() }))?;
        }
        let nodes: Vec<Value> = (self.pods.div_ceil(PODS_PER_NODE)..pods.div_ceil(PODS_PER_NODE)).map(node).collect();
        let api = self.plane.api();
        api.create_all("/api/v1/nodes", &nodes, PARALLEL)?;
        let pods_of = new.iter().map(|n| pod(*n)).collect::<Vec<_>>();
        api.create_all("/api/v1/namespaces/{namespace}/pods", &pods_of, PARALLEL)?;
        self.pods = self.pods.max(pods);
        eprintln!("{} pods more in {:.0} s", new.len(), begin.elapsed().as_secs_f32());
        Ok(())
    }

    fn policies(&self, count: usize) -> Result<()> {
        let policy = |n: usize| {
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "namespace": format!("team-{}", n % 100), "name": format!("policy-{n}") },
                "spec": {
                    "podSelector": { "matchLabels": { "app": format!("app-{}", n % 20) } },
                    "policyTypes": ["Ingress", "Egress"],
                    "ingress": [{
                        "from": [{ "podSelector": { "matchLabels": { "app": format!("app-{}", (n + 1) % 20) } } },
                                 { "namespaceSelector": { "matchLabels": { "team": (n % 7).to_string() } } }],
                        "ports": [{ "port": 8080, "protocol": "TCP" }],
                    }],
                    "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }],
                },
            })
        };
        let policies: Vec<Value> = (0..count).map(policy).collect();
        self.plane.api().create_all(
            "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
            &policies,
            PARALLEL,
        )
    }

    /// The server's own metrics, and its processor time as the kernel counts it.
    fn read(&self) -> Result<Reading> {
        let text = self.plane.api().text("/metrics")?;
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Reading {
            at: Instant::now(),
            // A watch is counted in the first when it ends, in the second while it lasts.
            requests: sum("apiserver_request_total") + sum("apiserver_longrunning_requests"),
            bytes: sum("apiserver_response_sizes_sum") + sum("apiserver_watch_events_sizes_sum"),
            cpu_seconds: self.plane.server.cpu_seconds()?,
        })
    }

    /// What the changes cost while nobody watches.
    fn churned(&self) -> Result<Spent> {
        let before = self.read()?;
        self.churn()?;
        Ok(before.until(&self.read()?))
    }

    /// Changes pods' statuses at an even pace.
    fn churn(&self) -> Result<()> {
        let begin = Instant::now();
        let mut n = 0;
        while begin.elapsed() < CHURN {
            let next = begin + Duration::from_secs(1) * n / CHANGES_PER_SECOND;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let (namespace, name) = place(n as usize * 7 % self.pods);
            let status = json!({ "status": { "message": format!("change {}", self.changes.get()) } });
            self.changes.set(self.changes.get() + 1);
            self.plane.api().patch_status(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), &status)?;
            n += 1;
        }
        Ok(())
    }

    /// One row of the table of loads.
    fn load(&self, mode: &str, count: usize, baseline: &Spent) -> Result<()> {
        let before = self.read()?;
        let agents = Followers::start(&self.plane.kubeconfig(), mode, count)?;
        let started = before.until(&self.read()?);
        let churned = self.churned()?;
        drop(agents);
        let each = |value: f64| value / count as f64;
        println!(
            "{mode:<8} {count:>6} | {:>9.1} {:>11.0} {:>9.1} | {:>9.1} {:>11.0} {:>9.2}",
            each(started.requests),
            each(started.bytes),
            each(started.cpu_seconds * 1e3),
            each(churned.requests - baseline.requests),
            each(churned.bytes / churned.seconds - baseline.bytes / baseline.seconds),
            each((churned.cpu_seconds / churned.seconds - baseline.cpu_seconds / baseline.seconds) * 1e3),
        );
        Ok(())
    }

    /// Resident memory of an agent in sync.
    fn memory(&self, mode: &str, churn: bool) -> Result<String> {
        let agent = start(&self.plane.kubeconfig(), mode, 0)?;
        if churn {
            self.churn()?;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        let (resident, anonymous) = (field("VmRSS:")?, field("RssAnon:")?);
        agent.stop()?;
        Ok(format!("{resident:.1} ({anonymous:.1})"))
    }

    /// What an agent asks for an address that it doesn't know, again and again: a list by address out of the server's cache,
    /// then the pod itself.
    fn lookups(&self, fields: impl Fn(usize) -> String) -> Result<String> {
        let before = self.read()?;
        let mut times = Vec::new();
        for n in 0..LOOKUPS {
            let begin = Instant::now();
            let wanted = n as usize * 31 % self.pods;
            let fields = fields(wanted);
            let list = self.plane.api().get(&format!("/api/v1/pods?fieldSelector={fields}&resourceVersion=0"))?;
            anyhow::ensure!(list["items"].as_array().is_some_and(|items| !items.is_empty()), "{fields}: {list}");
            let (namespace, name) = place(wanted);
            self.plane.api().get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let spent = before.until(&self.read()?);
        times.sort_by(f64::total_cmp);
        let each = |value: f64| value / f64::from(LOOKUPS);
        Ok(format!(
            "median {:.1} ms, longest {:.1} ms; {:.0} bytes; {:.1} ms of the server's processor time",
            times[times.len() / 2],
            times[times.len() - 1],
            each(spent.bytes),
            each(spent.cpu_seconds * 1e3)
        ))
    }
}

/// What agents are to the API server: each its own client and index, without the rest of an agent.
struct Followers {
    _runtime: Runtime,
}

impl Followers {
    /// Starts them and waits until all are in sync.
    fn start(kubeconfig: &Path, mode: &str, count: usize) -> Result<Followers> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut clusters = Vec::new();
        for n in 0..count {
            let access = Access { kubeconfig: Some(kubeconfig.to_owned()), context: None };
            let peers = if mode == "watch" { Peers::Watch } else { Peers::Lookup };
            let (lookups, asked) = Lookups::new(Some(node_name(n).as_str().into()));
            let options = Options { access, peers, node: Some(node_name(n).as_str().into()) };
            let cluster = Cluster::live();
            runtime.spawn(api::follow(cluster.clone(), options, lookups, asked));
            clusters.push(cluster);
        }
        // Many agents on a few cores take minutes, and come in sync all at once.
        let begin = Instant::now();
        while !clusters.iter().all(Cluster::synced) {
            anyhow::ensure!(begin.elapsed() < MANY_PATIENCE, "{count} agents: not in sync within {MANY_PATIENCE:?}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Followers { _runtime: runtime })
    }
}

/// An agent in sync.
fn start(kubeconfig: &Path, mode: &str, node: usize) -> Result<Agent> {
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--peers", mode, "--node-name", &node_name(node), "--kubeconfig"]).arg(kubeconfig);
    let agent = Agent::spawn(command)?;
    // A large cluster may still be on its way when the agent starts to record.
    agent.wait_for("all sources in sync", |records| {
        let sources = records.iter().rev().map(|record| record.list("/sources")).find(|sources| !sources.is_empty());
        sources.is_some_and(|sources| sources.iter().all(|source| source["synced"] == true))
    })?;
    Ok(agent)
}

fn node_name(n: usize) -> String {
    format!("node-{n}")
}

fn node(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node_name(n), "labels": { "kubernetes.io/hostname": node_name(n) } },
        "spec": { "podCIDR": format!("10.{}.{}.0/26", n / 1024, n / 4 % 256) },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("172.18.{}.{}", n / 250, n % 250 + 1) }] },
    })
}

fn place(n: usize) -> (String, String) {
    (format!("team-{}", n % 100), format!("app-{}-7d9c8bf9d-{n:05}", n % 20))
}

fn ip(n: usize) -> String {
    format!("10.{}.{}.{}", 100 + n / 62_500, n / 250 % 250, n % 250 + 1)
}

/// A pod as a Deployment makes it, of about 4 kB with what the server adds.
fn pod(n: usize) -> Value {
    let (namespace, name) = place(n);
    let variables: Vec<Value> = (0..20)
        .map(|v| json!({ "name": format!("SETTING_{v}"), "value": format!("value-{v}.{namespace}.svc") }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name,
            "labels": { "app": format!("app-{}", n % 20), "pod-template-hash": "7d9c8bf9d", "tier": "backend",
                        "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/version": "1.2.3" },
            "annotations": { "checksum/config": "0123456789abcdef".repeat(4), "prometheus.io/scrape": "true" },
        },
        "spec": {
            "nodeName": node_name(n / PODS_PER_NODE),
            "containers": [{
                "name": "main", "image": "registry.example/team/app:1.2.3", "env": variables,
                "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
            }],
        },
        "status": { "phase": "Running", "podIP": ip(n), "podIPs": [{ "ip": ip(n) }],
                    "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}
