//! Kubernetes Events (`--output events`) on a real API server, about real drops.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::shared;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{cluster, eventually, require, traffic};
use serde_json::{Value, json};

use super::accounts::{account, bind};

const NAMESPACE: &str = "events-agents";

/// Three ports that no other test sends to: all labs of a machine have the same addresses.
fn ports() -> std::ops::Range<u16> {
    let first = 30_000 + (std::process::id() % 5_000) as u16 * 4;
    first..first + 3
}

/// Runs these tests one at a time, for the same reason.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an account for an agent. It may write Events if `may` is true.
fn agent_account(plane: &ControlPlane, name: &str, may: bool) -> Result<std::path::PathBuf> {
    for namespace in [NAMESPACE, "lab"] {
        plane.namespace(namespace, &json!({}))?;
    }
    account(plane, NAMESPACE, name)?;
    if may {
        plane.api().apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name },
            "rules": [{ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] }],
        }))?;
        bind(plane, name, None, ("ClusterRole", name), (NAMESPACE, name))?;
    }
    plane.account_kubeconfig(NAMESPACE, name)
}

fn start(pair: &Pair, kubeconfig: &Path) -> Result<Agent> {
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--hooks", "kfree_skb", "--node-name", "node-a"]);
    command.args(["--output", "stdout", "--output", "events", "--manifests"]).arg(pair.manifests());
    let agent = Agent::spawn({
        command.env("KUBECONFIG", kubeconfig);
        command
    })?;
    agent.wait_for("its start", |records| records.iter().any(|record| record.text("/phase") == "started"))?;
    Ok(agent)
}

/// Sends five datagrams to each of [`ports`].
fn send(pair: &Pair) -> Result<()> {
    let to: Vec<SocketAddr> = (0..5).flat_map(|_| ports().map(|port| (SERVER, port).into())).collect();
    traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 64).map(drop)
}

/// Drops to this port in this lab.
fn packets(pair: &Pair, records: &[Record], port: u16) -> u64 {
    let to = |record: &&Record| record.number("/destination/port") == Some(port.into()) && pair.lab.owns(record);
    records.iter().filter(to).map(Record::count).sum()
}

/// The Events about one pod's drops to this port.
fn events(plane: &ControlPlane, port: u16) -> Result<Vec<Value>> {
    let list = plane.api().get("/apis/events.k8s.io/v1/namespaces/lab/events")?;
    let about = |event: &&Value| event["note"].as_str().is_some_and(|note| note.starts_with(&format!("{port}/UDP ")));
    Ok(list["items"].as_array().context("a list")?.iter().filter(about).cloned().collect())
}

fn count(event: &Value) -> u64 {
    event.pointer("/series/count").and_then(Value::as_u64).unwrap_or(1)
}

#[test]
fn drops_are_events_of_the_pod() -> Result<()> {
    require!(cluster::can_run(&[]));
    let _alone = alone();
    let plane = shared()?;
    let pair = Pair::start(DENY)?;
    let agent = start(&pair, &agent_account(plane, "events-agent", true)?)?;
    send(&pair)?;
    for port in ports() {
        eventually("an Event for each port", || Ok((!events(plane, port)?.is_empty()).then_some(())))?;
    }
    send(&pair)?;
    agent.wait_for("all drops", |records| ports().all(|port| packets(&pair, records, port) == 10))?;
    let run = agent.stop()?;

    for port in ports() {
        // One Event for all ten, with its final count by the agent's end.
        let [event] = <[Value; 1]>::try_from(events(plane, port)?).map_err(|all| anyhow::anyhow!("{all:?}"))?;
        ensure!(count(&event) == 10, "{event:#}\n{}", run.stderr);
        for (pointer, expected) in [
            ("/type", "Warning"),
            ("/reason", "NetworkPolicyDenied"),
            ("/action", "DroppedPacket"),
            ("/regarding/kind", "Pod"),
            ("/regarding/namespace", "lab"),
            ("/regarding/name", "client"),
            ("/related/kind", "NetworkPolicy"),
            ("/related/name", "deny-server"),
            ("/reportingController", "netpol-trace.io/agent"),
            ("/reportingInstance", "node-a"),
        ] {
            let got = event.pointer(pointer).and_then(Value::as_str);
            ensure!(got == Some(expected), "{pointer} is {got:?}: {event:#}");
        }
        let note = event["note"].as_str().unwrap_or_default();
        let expected = format!("{port}/UDP to lab/server dropped: ingress by lab/deny-server");
        ensure!(note.starts_with(&expected) && note.len() <= 1024, "{note}");
    }
    // Where `kubectl describe pod` looks for them.
    let fields = "fieldSelector=involvedObject.kind%3DPod,involvedObject.name%3Dclient,reason%3DNetworkPolicyDenied";
    let described = plane.api().get(&format!("/api/v1/namespaces/lab/events?{fields}"))?;
    ensure!(described["items"].as_array().is_some_and(|items| items.len() >= ports().len()), "{described}");
    Ok(())
}

/// A scan makes few Events, and every packet is counted in one of them.
#[test]
fn a_scan_makes_few_events() -> Result<()> {
    require!(cluster::can_run(&[]));
    let _alone = alone();
    let plane = shared()?;
    // Pods with names of their own, since the test counts their Events.
    let pair = Pair::start(DENY)?;
    let cluster = std::fs::read_to_string(pair.manifests().join("cluster.yaml"))?;
    pair.add("cluster.yaml", &cluster.replace("name: client", "name: scanner"))?;
    let agent = start(&pair, &agent_account(plane, "events-agent", true)?)?;
    let to = (48000..48040).map(|port| (SERVER, port).into());
    traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 64)?;
    let own = |records: &[Record]| records.iter().filter(|record| record.is_drop() && pair.lab.owns(record)).count();
    agent.wait_for("the scan", |records| own(records) == 40)?;
    let run = agent.stop()?;
    let all = run.records.iter().filter(|record| record.cause() == "policy" && record.pod("source") == "lab/scanner");
    let list = plane.api().get("/apis/events.k8s.io/v1/namespaces/lab/events")?;
    let about = |event: &&Value| event["regarding"]["name"] == "scanner";
    let events: Vec<&Value> = list["items"].as_array().context("a list")?.iter().filter(about).collect();
    ensure!(events.len() == 11, "{} Events: {events:#?}\n{}", events.len(), run.stderr);
    let counted: u64 = events.iter().map(|event| count(event)).sum();
    ensure!(counted == all.map(Record::count).sum::<u64>(), "{counted} counted: {events:#?}\n{}", run.stderr);
    Ok(())
}

/// Without the right to write Events, the log says so, the losses are declared, and records are written all the same.
#[test]
fn without_the_right_they_are_declared_lost() -> Result<()> {
    require!(cluster::can_run(&[]));
    let _alone = alone();
    let plane = shared()?;
    let pair = Pair::start(DENY)?;
    let agent = start(&pair, &agent_account(plane, "events-powerless", false)?)?;
    send(&pair)?;
    agent.wait_for("all drops", |records| ports().all(|port| packets(&pair, records, port) == 5))?;
    let run = agent.stop()?;
    ensure!(
        run.stderr.contains("the API server refused an Event for this pod") && run.stderr.contains("forbidden"),
        "{}",
        run.stderr
    );
    let stopped = run.stopped()?;
    let sink = stopped.list("/sinks").get(1).context("the second sink")?;
    ensure!(sink["name"] == "events" && sink["lost"].as_u64() > Some(0), "{stopped}");
    Ok(())
}
