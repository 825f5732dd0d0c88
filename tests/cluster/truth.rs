//! Kubernetes' own NetworkPolicy e2e tests as real traffic: the truth table, the enforcer, the client, the record and the
//! verdict agree on every ordered pair of pods.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::cluster::kube_router::{self, Backend, KubeRouter};
use netpol_trace_tests::cluster::node::{Node, PodSpec};
use netpol_trace_tests::cluster::probe::{self, Probe, Protocol};
use netpol_trace_tests::cluster::{programs, shared};
use netpol_trace_tests::{cluster, require};
use serde_json::{Value, json};

use crate::exclusive;

const TABLE: &str = include_str!("../golden/kubernetes-e2e-netpol.json");

#[test]
fn kube_router_by_iptables_legacy() -> Result<()> {
    require!(run(Backend::Legacy, 0, 201));
    Ok(())
}

/// The table's other steps, with the same rules in nftables.
#[test]
fn kube_router_by_nftables() -> Result<()> {
    require!(run(Backend::Nft, 1, 202));
    Ok(())
}

fn run(backend: Backend, first: usize, number: u8) -> Result<()> {
    cluster::can_run(&[programs::KUBE_ROUTER])?;
    kube_router::has_backend(backend)?;
    let _exclusive = exclusive();
    let table: Value = serde_json::from_str(TABLE)?;
    let mut stage = Stage::build(&table["model"], number)?;
    let mut router = KubeRouter::start(&stage.node, backend)?;
    let (mut steps, mut probes, mut wrong) = (0, 0, String::new());
    let cases: Vec<&Value> = list(&table["cases"]).skip(first).step_by(2).collect();
    for case in cases {
        let step = Step::of(case, &stage.pods)?;
        if step.probes.is_empty() {
            // This kernel has no SCTP sockets.
            continue;
        }
        let found = stage.play(&step, &mut router)?;
        steps += 1;
        probes += step.probes.len();
        for line in found {
            writeln!(wrong, "{}: {line}", step.name)?;
        }
    }
    router.remove(&stage.node)?;
    stage.clear()?;
    println!("{steps} steps, {probes} connections");
    ensure!(steps >= 20, "only {steps} steps of the table were played");
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// The table's pods on one node, with servers on their ports.
struct Stage {
    node: Node,
    model: Value,
    pods: Vec<String>,
    policies: Vec<Value>,
    _servers: Vec<netpol_trace_tests::server::Server>,
}

/// One step of the table: the objects to apply, and the expected outcome of each connection.
struct Step {
    name: String,
    case: Value,
    probes: Vec<Probe>,
}

impl Step {
    fn of(case: &Value, pods: &[String]) -> Result<Step> {
        let denied: BTreeSet<String> = list(&case["denied"])
            .map(|d| format!("{} {} {}/{}", text(&d[0]), text(&d[1]), d[2], text(&d[3])))
            .collect();
        let mut probes = Vec::new();
        for probe in list(&case["probes"]) {
            let protocol = match text(&probe["protocol"]) {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                _ => continue,
            };
            let port = u16::try_from(probe["port"].as_u64().context("a port")?)?;
            for from in pods {
                for to in pods.iter().filter(|to| *to != from) {
                    let key = format!("{from} {to} {port}/{}", text(&probe["protocol"]));
                    let allowed = !denied.contains(&key);
                    let (from, to) = (from.clone(), to.clone());
                    probes.push(Probe { from, to, port, protocol, ipv6: false, allowed });
                }
            }
        }
        let name = format!("{} {} {}", case["id"], text(&case["case"]), case["step"]);
        Ok(Step { name, case: case.clone(), probes })
    }
}

impl Stage {
    fn build(model: &Value, number: u8) -> Result<Stage> {
        let plane = shared()?;
        for (name, labels) in model["namespaces"].as_object().context("namespaces")? {
            plane.namespace(name, labels)?;
        }
        let mut node = Node::start(plane, number)?;
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for (n, pod) in list(&model["pods"]).enumerate() {
            node.pod(spec(pod, n), &pod["labels"], &ports(model))?;
            let id = text(&pod["id"]);
            servers.extend(probe::serve(&node, id, &[80, 81])?);
            pods.push(id.to_owned());
        }
        Ok(Stage { node, model: model.clone(), pods, policies: Vec::new(), _servers: servers })
    }

    /// Applies the step's objects, sends its connections while the agent runs, and returns what disagrees.
    fn play(&mut self, step: &Step, router: &mut KubeRouter) -> Result<Vec<String>> {
        self.tell(&step.case)?;
        router.sync(&self.node)?;
        // A late sync resets kube-router's counters: then all is sent again.
        for _ in 0..5 {
            let before = router.counters(&self.node)?;
            let agent = self.node.watch()?;
            let attempts = probe::send(&self.node, &step.probes)?;
            let run = agent.stop()?;
            let after = router.counters(&self.node)?;
            if before.keys().ne(after.keys()) {
                continue;
            }
            run.balance()?;
            let counted = after.values().sum::<u64>() - before.values().sum::<u64>();
            return Ok(probe::compare(&self.node, &step.probes, &attempts, &run.records, counted));
        }
        anyhow::bail!("kube-router makes its rules anew all the time")
    }

    /// Sets the case's labels and policies, and removes those of the step before.
    fn tell(&mut self, case: &Value) -> Result<()> {
        let api = self.node.plane().api();
        for policy in self.policies.drain(..) {
            api.delete(&policy)?;
        }
        for (name, labels) in self.model["namespaces"].as_object().context("namespaces")? {
            self.node.plane().namespace(name, &merged(labels, &case["namespace_labels_extra"][name]))?;
        }
        for (n, pod) in list(&self.model["pods"]).enumerate() {
            let labels = merged(&pod["labels"], &case["pod_labels_extra"][text(&pod["id"])]);
            let host = self.node.lab.host(text(&pod["id"]))?;
            let ips = [host.ipv4.into(), host.ipv6.into()];
            api.apply(&self.node.pod_object(spec(pod, n), &labels, &ports(&self.model), &ips))?;
        }
        for policy in list(&case["policies"]) {
            let policy = with_addresses(policy, &self.model, &self.node)?;
            api.apply(&policy)?;
            self.policies.push(policy);
        }
        Ok(())
    }

    /// Deletes the pods and policies, for the next test with the same names.
    fn clear(&mut self) -> Result<()> {
        let api = self.node.plane().api();
        for policy in self.policies.drain(..) {
            api.delete(&policy)?;
        }
        for (n, pod) in list(&self.model["pods"]).enumerate() {
            let PodSpec { namespace, name, .. } = spec(pod, n);
            api.delete(
                &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": namespace, "name": name } }),
            )?;
        }
        Ok(())
    }
}

fn spec(pod: &Value, n: usize) -> PodSpec<'_> {
    PodSpec { namespace: text(&pod["namespace"]), name: text(&pod["name"]), host: 11 + n as u8 }
}

fn ports(model: &Value) -> Value {
    let port = |p: &Value| json!({ "name": p["name"], "containerPort": p["port"], "protocol": p["protocol"] });
    list(&model["ports"]).map(port).collect()
}

fn merged(labels: &Value, extra: &Value) -> Value {
    let mut labels = labels.clone();
    if let (Some(labels), Some(extra)) = (labels.as_object_mut(), extra.as_object()) {
        labels.extend(extra.clone());
    }
    labels
}

/// Replaces the addresses of the table's pods in ipBlocks, since the pods have others here.
fn with_addresses(policy: &Value, model: &Value, node: &Node) -> Result<Value> {
    let mut text = policy.to_string();
    for pod in list(&model["pods"]) {
        let address = node.lab.host(self::text(&pod["id"]))?.ipv4;
        text = text.replace(&format!("{}/", self::text(&pod["ip"])), &format!("{address}/"));
    }
    Ok(serde_json::from_str(&text)?)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
