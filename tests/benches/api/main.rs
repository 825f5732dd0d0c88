//! The load of agents on a real API server, and an agent's memory by cluster size: requests, bytes, the server's processor time, resident
//! memory. `cargo xtask bench api -- memory` runs one part.

mod objects;

use std::cell::Cell;
use std::env;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_trace::cluster::Cluster;
use netpol_trace::cluster::api::{self, Access, ApiOptions, Lookups, PeerDiscovery};
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::daemon::Lifetime;
use netpol_trace_tests::cluster::etcd::Etcd;
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{cluster, eventually, require};
use objects::{PODS_PER_NODE, copy, ip, node, node_name, place, pod, policy};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Changes of pods' statuses while agents watch.
const CHANGES_PER_SECOND: u32 = 20;
const CHURN: Duration = Duration::from_secs(20);
const AGENTS: [usize; 3] = [1, 10, 50];
/// Time limit for many agents that start at once.
const MANY_PATIENCE: Duration = Duration::from_secs(900);
/// Parallel requests while the cluster is filled.
const PARALLEL: usize = 16;
const LOOKUPS: u32 = 100;
/// The agent returns a LIST's memory within a minute.
const AT_REST: Duration = Duration::from_secs(65);
/// The environment variable that leaves out stages with more pods than this.
const MOST: &str = "NETPOL_TRACE_BENCH_PODS";
/// Pods that are created through the API server. Pods beyond are copies, written into the server's database.
const BY_API: usize = 1_000;
/// Names of the parts. Each uses the pods of the parts before.
const PARTS: [&str; 3] = ["load", "lookups", "memory"];

fn main() -> Result<()> {
    require!(cluster::can_run(&[]));
    let most: usize = env::var(MOST).ok().map(|text| text.parse()).transpose().context(MOST)?.unwrap_or(100_000);
    // Cargo passes --bench.
    let parts: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Some(unknown) = parts.iter().find(|name| !PARTS.contains(&name.as_str())) {
        bail!("no part `{unknown}`; there are {}", PARTS.join(", "));
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    let dir = tempfile::tempdir()?;
    let mut plane = ControlPlane::start(&dir.path().join("state"), Lifetime::OfThisProgram)?;
    let mut cluster = FilledCluster { plane: &mut plane, pods: 0, changes: Cell::new(0) };
    let size = |pods: usize| pods.min(most);

    cluster.grow(size(BY_API))?;
    cluster.policies(500)?;
    if wanted("memory") {
        cluster.memories()?;
    }

    cluster.grow(size(5_000))?;
    if wanted("load") {
        cluster.loads()?;
    }

    if wanted("lookups") {
        cluster.grow(size(50_000))?;
        println!("\nOne lookup of a pod by its IP, and then by name");
        let by_ip = |n| format!("status.podIP%3D{}%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed", ip(n));
        println!("{:>8} pods, list by status.podIP:  {}", cluster.pods, cluster.lookups(by_ip)?);
        let by_node = |n| format!("spec.nodeName%3D{}", node_name(n / PODS_PER_NODE));
        println!("{:>8} pods, list by spec.nodeName: {}", cluster.pods, cluster.lookups(by_node)?);
    }

    if wanted("memory") {
        for pods in [20_000, 100_000] {
            cluster.grow(size(pods))?;
            cluster.memories()?;
        }
    }
    Ok(())
}

struct FilledCluster<'a> {
    plane: &'a mut ControlPlane,
    pods: usize,
    /// Number of status changes so far. Each status differs, or the server would send no event.
    changes: Cell<usize>,
}

/// The API server's own metrics at one moment.
#[derive(Debug, Clone, Copy)]
struct ServerCounters {
    at: Instant,
    requests: f64,
    bytes: f64,
    cpu_seconds: f64,
}

/// The difference between two moments.
#[derive(Debug, Clone, Copy)]
struct ServerWork {
    seconds: f64,
    requests: f64,
    bytes: f64,
    cpu_seconds: f64,
}

impl ServerCounters {
    fn until(&self, later: &ServerCounters) -> ServerWork {
        ServerWork {
            seconds: (later.at - self.at).as_secs_f64(),
            requests: later.requests - self.requests,
            bytes: later.bytes - self.bytes,
            cpu_seconds: later.cpu_seconds - self.cpu_seconds,
        }
    }
}

impl FilledCluster<'_> {
    /// Adds pods, and the nodes that they need.
    fn grow(&mut self, pods: usize) -> Result<()> {
        let begin = Instant::now();
        let new: Vec<usize> = (self.pods..pods).collect();
        for namespace in 0..new.len().min(100) {
            self.plane.namespace(&format!("team-{namespace}"), &json!({ "team": namespace.to_string() }))?;
        }
        let nodes: Vec<Value> = (self.pods.div_ceil(PODS_PER_NODE)..pods.div_ceil(PODS_PER_NODE)).map(node).collect();
        let api = self.plane.api();
        api.create_all("/api/v1/nodes", &nodes, PARALLEL)?;
        let (made, copied) = new.split_at(BY_API.saturating_sub(self.pods).min(new.len()));
        let made: Vec<Value> = made.iter().map(|n| pod(*n)).collect();
        api.create_all("/api/v1/namespaces/{namespace}/pods", &made, PARALLEL)?;
        self.copy_pods(copied)?;
        self.pods = self.pods.max(pods);
        eprintln!("{} pods more in {:.0} s", new.len(), begin.elapsed().as_secs_f32());
        Ok(())
    }

    /// Writes copies of the first pod into the server's database, and waits until the server has them all.
    fn copy_pods(&self, new: &[usize]) -> Result<()> {
        let Some(last) = new.last() else { return Ok(()) };
        let (namespace, name) = place(0);
        let api = self.plane.api();
        let mut template = api.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))?;
        template["metadata"].as_object_mut().context("metadata")?.remove("resourceVersion");
        let etcd = Etcd::connect(self.plane.etcd_address())?;
        for some in new.chunks(10_000) {
            let copies: Vec<Value> = some.iter().map(|n| copy(&template, *n)).collect();
            etcd.put_pods(&copies, PARALLEL)?;
        }
        let (namespace, name) = place(*last);
        // From the server's watch cache, from which agents get their events.
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?resourceVersion=0");
        eventually("the last pod in the server's cache", || Ok(api.get(&path).ok()))?;
        Ok(())
    }

    fn policies(&self, count: usize) -> Result<()> {
        let policies: Vec<Value> = (0..count).map(policy).collect();
        self.plane.api().create_all(
            "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
            &policies,
            PARALLEL,
        )
    }

    /// Reads the server's own metrics, and its processor time from the kernel.
    fn read(&self) -> Result<ServerCounters> {
        let text = self.plane.api().text("/metrics")?;
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(ServerCounters {
            at: Instant::now(),
            // The first metric counts a watch when it ends, the second while it lasts.
            requests: sum("apiserver_request_total") + sum("apiserver_longrunning_requests"),
            bytes: sum("apiserver_response_sizes_sum") + sum("apiserver_watch_events_sizes_sum"),
            cpu_seconds: self.plane.server.cpu_seconds()?,
        })
    }

    /// Prints the table of the load of many agents.
    fn loads(&self) -> Result<()> {
        println!("\nLoad of the API server at {} pods, per agent", self.pods);
        println!(
            "start: until in sync; churn: {CHANGES_PER_SECOND} pod changes a second, less what they cost without agents"
        );
        println!(
            "{:<8} {:>6} | {:>9} {:>11} {:>9} | {:>9} {:>11} {:>9}",
            "mode", "agents", "requests", "bytes", "CPU ms", "requests", "bytes/s", "CPU ms/s"
        );
        let baseline = self.churned()?;
        for mode in ["lookup", "watch"] {
            for agents in AGENTS {
                self.load(mode, agents, &baseline)?;
            }
        }
        Ok(())
    }

    /// Measures the changes without agents.
    fn churned(&self) -> Result<ServerWork> {
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

    /// Measures one row of the table of loads.
    fn load(&self, mode: &str, count: usize, baseline: &ServerWork) -> Result<()> {
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

    /// Prints the table of one agent's memory at this size.
    fn memories(&mut self) -> Result<()> {
        let pods = self.pods;
        println!("\nMemory of one agent, MiB: resident (of it not the program file), most resident so far");
        for mode in ["lookup", "watch"] {
            let agent = start(&self.plane.kubeconfig(), mode, 0)?;
            println!("{pods:>8} pods, {mode:<7} in sync                        {}", resident(&agent)?);
            // The agent returns a LIST's memory once a minute.
            thread::sleep(AT_REST);
            println!("{pods:>8} pods, {mode:<7} at rest                        {}", resident(&agent)?);
            self.churn()?;
            println!(
                "{pods:>8} pods, {mode:<7} after {CHURN:?} of {CHANGES_PER_SECOND} changes a second {}",
                resident(&agent)?
            );
            self.plane.server.kill()?;
            wait_long(&agent, "a source out of sync", |records| !in_sync(records))?;
            self.plane.restart_server()?;
            wait_long(&agent, "all sources in sync again", in_sync)?;
            println!("{pods:>8} pods, {mode:<7} after the server's restart     {}", resident(&agent)?);
            agent.stop()?;
        }
        Ok(())
    }

    /// Measures the lookup of unknown addresses: a list by address from the server's cache, then the pod itself.
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

/// Clients that list and watch as agents do: each has its own client and index, without the rest of an agent.
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
            let peers = if mode == "watch" { PeerDiscovery::Watch } else { PeerDiscovery::Lookup };
            let (lookups, asked) = Lookups::new(Some(node_name(n).as_str().into()));
            let options = ApiOptions { access, peers, node: Some(node_name(n).as_str().into()) };
            let cluster = Cluster::live();
            runtime.spawn(api::follow(cluster.clone(), options, lookups, asked));
            clusters.push(cluster);
        }
        // Many agents on few cores take minutes, and are in sync all at once.
        let begin = Instant::now();
        while !clusters.iter().all(Cluster::synced) {
            anyhow::ensure!(begin.elapsed() < MANY_PATIENCE, "{count} agents: not in sync within {MANY_PATIENCE:?}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Followers { _runtime: runtime })
    }
}

/// Starts an agent and waits until it is in sync.
fn start(kubeconfig: &Path, mode: &str, node: usize) -> Result<Agent> {
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--peers", mode, "--node-name", &node_name(node), "--kubeconfig"]).arg(kubeconfig);
    let agent = Agent::spawn(command)?;
    // The agent may record drops before it has read a large cluster.
    wait_long(&agent, "all sources in sync", in_sync)?;
    Ok(agent)
}

/// True if the newest status with sources is in sync.
fn in_sync(records: &[Record]) -> bool {
    let sources = records.iter().rev().map(|record| record.list("/sources")).find(|sources| !sources.is_empty());
    sources.is_some_and(|sources| sources.iter().all(|source| source["synced"] == true))
}

/// Waits as long as a large cluster needs on a small machine.
fn wait_long(agent: &Agent, what: &str, done: impl Fn(&[Record]) -> bool) -> Result<()> {
    let begin = Instant::now();
    loop {
        match agent.wait_for(what, &done) {
            Err(_) if begin.elapsed() < MANY_PATIENCE && Path::new(&format!("/proc/{}", agent.pid())).exists() => {}
            result => return result,
        }
    }
}

/// An agent's resident memory now and its highest, in MiB.
fn resident(agent: &Agent) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let field = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok(format!("{:6.1} ({:5.1}) {:6.1}", field("VmRSS:")?, field("RssAnon:")?, field("VmHWM:")?))
}
