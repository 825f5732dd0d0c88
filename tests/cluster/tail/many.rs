//! `tail` in a cluster with more agents than it asks by default.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, ensure};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::shared;
use netpol_trace_tests::{agent, require};
use serde_json::{Value, json};

use super::{Following, can_run_kubelet, objects, records, start_kubelet, stderr};

const AGENTS: &str = "tail-many-agents";
/// The namespace of the pods that `tail` is asked for.
const PODS: &str = "tail-many";
const NODES: usize = 60;
/// Agents whose logs `tail` reads at a time.
const AT_ONCE: usize = 20;

fn node(number: usize) -> String {
    format!("many-{number:02}")
}

fn pod_name(number: usize) -> String {
    format!("netpol-trace-{number:02}")
}

/// A drop from one pod to another, each `(name, node)`, as the agent of node `on` has recorded it.
fn drop(on: usize, number: u32, from: (&str, usize), to: (&str, Option<usize>)) -> String {
    let end = |name: &str, at: Option<usize>, last: u8| {
        let mut pod = json!({ "namespace": PODS, "name": name });
        if let Some(at) = at {
            pod["node"] = node(at).into();
        }
        json!({ "kind": "pod", "ip": format!("10.1.{on}.{last}"), "port": number, "pod": pod })
    };
    let run = format!("run{on:02}");
    let record = json!({
        "schema": "netpol-trace/v1", "id": format!("{run}/{number}"), "run": run, "seq": number, "kind": "drop",
        "time": format!("2026-11-21T13:00:{on:02}.{number:03}Z"), "node": node(on), "count": 1, "cause": "policy",
        "source": end(from.0, Some(from.1), 1), "destination": end(to.0, to.1, 2),
        "network": { "transport": "tcp", "family": "ipv4", "length": 60 },
    });
    format!("{record}\n")
}

fn place(plane: &ControlPlane, name: &str, on: usize) -> Result<Value> {
    let containers = json!([{ "name": "main", "image": "registry.example/db:1" }]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": PODS, "name": name },
        "spec": { "nodeName": node(on), "serviceAccountName": "default", "automountServiceAccountToken": false, "containers": containers },
    });
    plane.api().apply(&pod)?;
    Ok(pod)
}

fn tail(kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(agent::binary()?);
    command.args(["tail", "--agents-namespace", AGENTS, "-o", "json", "--kubeconfig"]).arg(kubeconfig);
    Ok(command.args(arguments).stdin(Stdio::null()).output()?)
}

fn ids(output: &Output) -> Result<BTreeSet<String>> {
    Ok(records(output)?.iter().map(|record| record.text("/id").to_owned()).collect())
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn only_the_nodes_that_matter_are_asked() -> Result<()> {
    require!(can_run_kubelet());
    let plane = shared()?;
    let dir = tempfile::tempdir()?;
    let (_kubelet, port) = start_kubelet(dir.path())?;
    for namespace in [AGENTS, PODS] {
        plane.namespace(namespace, &json!({}))?;
        super::account(plane, namespace, "default")?;
    }
    super::account(plane, AGENTS, "agent")?;
    let log = |on: usize| dir.path().join(pod_name(on));
    for on in 0..NODES {
        objects(plane, port, AGENTS, &node(on), &pod_name(on))?;
        std::fs::write(log(on), drop(on, 1, ("noise-a", on), ("noise-b", Some(on))))?;
    }
    let append = |on: usize, line: &str| -> Result<()> {
        let text = std::fs::read_to_string(log(on))? + line;
        Ok(std::fs::write(log(on), text)?)
    };
    let db = place(plane, "db-0", 7)?;
    // Egress drops are recorded at the pod's node, ingress drops at its peer's. Node 30 has neither endpoint.
    append(7, &drop(7, 2, ("db-0", 7), ("web-1", Some(12))))?;
    append(12, &drop(12, 2, ("web-1", 12), ("db-0", Some(7))))?;
    append(30, &drop(30, 2, ("other", 30), ("db-0", None)))?;

    let admin = plane.kubeconfig();
    let wanted = format!("{PODS}/db-0");
    let few = tail(&admin, &["--pod", &wanted])?;
    ensure!(ids(&few)? == set(&["run07/2", "run12/2"]), "{:?} {}", ids(&few)?, stderr(&few));
    ensure!(stderr(&few).contains("listening to 2 of 60 nodes: many-07, many-12"), "{}", stderr(&few));

    ensure!(
        stderr(&few).contains("; 2 of 2 agents answered; 58 other agents were not asked (--all-nodes asks them)\n"),
        "{}",
        stderr(&few)
    );
    ensure!(few.status.success(), "{}", few.status);

    // All agents, this many at a time: the kubelet answers once that many requests wait, and notes the highest number.
    std::fs::write(dir.path().join("hold"), AT_ONCE.to_string())?;
    let all = tail(&admin, &["--pod", &wanted, "--all-nodes"])?;
    std::fs::remove_file(dir.path().join("hold"))?;
    ensure!(ids(&all)? == set(&["run07/2", "run12/2", "run30/2"]), "{:?} {}", ids(&all)?, stderr(&all));
    ensure!(stderr(&all).contains("listening to 60 of 60 nodes"), "{}", stderr(&all));
    let most = std::fs::read_to_string(dir.path().join("most"))?;
    ensure!(most == AT_ONCE.to_string(), "{most} at a time");

    not_all_answer(plane, &admin, &wanted, &append)?;

    // The pod moves to another node while `tail` runs.
    let mut following = Following::start(dir.path(), AGENTS, &admin, &["--pod", &wanted])?;
    following.has("run12/2")?;
    plane.api().delete(&db)?;
    place(plane, "db-0", 33)?;
    append(33, &drop(33, 2, ("db-0", 33), ("web-2", Some(33))))?;
    following.has("run33/2")?;
    following.no_doubles()?;
    ensure!(following.log()?.contains("listening to 3 of 60 nodes: many-07, many-12, many-33"), "{}", following.log()?);
    Ok(())
}

/// `tail` names an agent that does not run. Losses of an agent are shown if the pod or its peers are on its node, else they are counted.
fn not_all_answer(
    plane: &ControlPlane,
    admin: &Path,
    wanted: &str,
    append: &impl Fn(usize, &str) -> Result<()>,
) -> Result<()> {
    let loss = |on: usize| {
        let record = json!({
            "schema": "netpol-trace/v1", "id": format!("run{on}/9"), "run": format!("run{on}"), "seq": 9, "kind": "loss",
            "time": "2026-11-21T13:00:00Z", "node": node(on), "stage": "sink", "reason": "test", "count": on,
        });
        format!("{record}\n")
    };
    append(7, &loss(7))?;
    append(41, &loss(41))?;
    let pod = |phase: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": AGENTS, "name": pod_name(42), "labels": { "app.kubernetes.io/name": "netpol-trace" } },
            "status": { "phase": phase },
        })
    };
    let path = format!("/api/v1/namespaces/{AGENTS}/pods/{}", pod_name(42));
    plane.api().patch_status(&path, &pod("Pending"))?;
    let all = tail(admin, &["--pod", wanted, "--all-nodes"])?;
    ensure!(ids(&all)? == set(&["run07/2", "run12/2", "run30/2", "run7/9"]), "{:?} {}", ids(&all)?, stderr(&all));
    for expected in [
        "; 59 of 60 agents answered; no answer from many-42 (its agent does not run)\n",
        "note: the agent of another node (many-41) lost 41 packets; nobody knows if any was to or from tail-many/db-0",
    ] {
        ensure!(stderr(&all).contains(expected), "{expected}: {}", stderr(&all));
    }
    ensure!(all.status.code() == Some(3), "{}", all.status);
    plane.api().patch_status(&path, &pod("Running"))
}
