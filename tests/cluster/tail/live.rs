//! `tail -f` on real agents and real drops: two nodes at once, and an agent that is killed and restarted.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::shared;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{eventually, require, traffic};
use nix::sys::signal::Signal;
use serde_json::json;

use netpol_trace_tests::process::KilledOnDrop;

use super::{Following, account, bind, can_run_kubelet, objects, reader, roles, start_kubelet};

fn send(pair: &Pair, ports: std::ops::Range<u16>) -> Result<()> {
    traffic::udp(&pair.client()?.netns, CLIENT.into(), ports.map(|port| (SERVER, port).into()), 64).map(drop)
}

/// Ports that no other test sends to: all labs of a machine have the same addresses.
fn ports() -> u16 {
    50_000 + (std::process::id() % 2_000) as u16 * 4
}

fn is_to(record: &Record, port: u16) -> bool {
    record.is_drop() && record.number("/destination/port") == Some(port.into())
}

/// Both nodes' agents write to their container's log. They share a kernel here, so both record the drop, and `tail` shows it once.
#[test]
fn a_drop_is_shown_as_it_happens() -> Result<()> {
    require!(can_run_kubelet());
    const AGENTS: &str = "tail-live-agents";
    let plane = shared()?;
    let pair = Pair::start(DENY)?;
    let dir = tempfile::tempdir()?;
    let (_kubelet, port) = start_kubelet(dir.path())?;
    plane.namespace(AGENTS, &json!({}))?;
    account(plane, AGENTS, "agent")?;
    let mut agents = Vec::new();
    for node in ["live-a", "live-b"] {
        objects(plane, port, AGENTS, node, &format!("agent-{node}"))?;
        let log = dir.path().join(format!("agent-{node}"));
        let mut command = Command::new(agent::binary()?);
        command.args(["agent", "--hooks", "kfree_skb", "--node-name", node, "--manifests"]).arg(pair.manifests());
        command.stdout(std::fs::File::create(&log)?).stderr(Stdio::null()).stdin(Stdio::null());
        agents.push(KilledOnDrop(command.spawn()?));
        eventually("the agent's start", || {
            Ok(std::fs::read_to_string(&log)?.contains("\"phase\":\"started\"").then_some(()))
        })?;
    }
    // Records from before its start are shown too.
    let first = ports();
    send(&pair, first..first + 1)?;
    let to = |port: u16| move |seen: &[Record]| seen.iter().any(|record| is_to(record, port));
    let mut tail = Following::start(dir.path(), AGENTS, &plane.kubeconfig(), &["--pod", "lab/client"])?;
    tail.until("what happened before", to(first))?;
    ensure!(tail.log()?.contains("listening to 2 of 2 nodes: live-a, live-b"), "{}", tail.log()?);
    let sent = Instant::now();
    send(&pair, first + 1..first + 2)?;
    let shown = tail.until("the drop", to(first + 1))?;
    eprintln!("from the packet to tail's line: {:.0?}", shown.duration_since(sent));
    // A later record was shown, so the second agent's record of this drop would have been shown before it.
    send(&pair, first + 2..first + 3)?;
    tail.until("the last drop", to(first + 2))?;
    for port in first..first + 2 {
        let times = tail.seen.iter().filter(|record| is_to(record, port) && pair.lab.owns(record)).count();
        ensure!(times == 1, "port {port} is shown {times} times: {:?}", tail.seen);
    }
    Ok(())
}

/// A node's agent with a history, for developers of namespace `lab`.
fn start(plane: &ControlPlane, agents: &str, pair: &Pair, history: &Path, listen: SocketAddr) -> Result<Agent> {
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--hooks", "kfree_skb", "--node-name", "node-a", "--agents-namespace", agents]);
    command.args(["--tail-listen", &listen.to_string()]).arg("--history-dir").arg(history);
    command.arg("--manifests").arg(pair.manifests()).env("KUBECONFIG", plane.account_kubeconfig(agents, "agent")?);
    let agent = Agent::spawn(command)?;
    agent.wait_for("its start", |records| records.iter().any(|record| record.text("/phase") == "started"))?;
    Ok(agent)
}

/// An agent is killed, and the next one uses the same history: records of both are shown once.
#[test]
fn a_killed_agent_leaves_no_gap_and_no_duplicate() -> Result<()> {
    require!(can_run_kubelet());
    const AGENTS: &str = "tail-kill-agents";
    let plane = shared()?;
    let pair = Pair::start(DENY)?;
    let dir = tempfile::tempdir()?;
    let (_kubelet, port) = start_kubelet(dir.path())?;
    for namespace in [AGENTS, "lab"] {
        plane.namespace(namespace, &json!({}))?;
    }
    roles(plane, AGENTS)?;
    account(plane, AGENTS, "agent")?;
    account(plane, "lab", "dev")?;
    reader(plane, "lab")?;
    bind(plane, "tail-kill", None, ("ClusterRole", "netpol-trace"), (AGENTS, "agent"))?;
    bind(plane, "tail-kill", Some("lab"), ("ClusterRole", "netpol-trace-developer"), ("lab", "dev"))?;
    bind(plane, "tail-kill", Some(AGENTS), ("Role", "netpol-trace-reach"), ("lab", "dev"))?;
    objects(plane, port, AGENTS, "kill-node", "agent-kill")?;
    let history = dir.path().join("history");
    let listen: SocketAddr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;

    let before = start(plane, AGENTS, &pair, &history, listen)?;
    let first = ports() + 3;
    let kubeconfig = plane.account_kubeconfig("lab", "dev")?;
    let tail_port = listen.port().to_string();
    let arguments = ["-n", "lab", "--service-account", "--tail-port", &tail_port];
    let mut tail = Following::start(dir.path(), AGENTS, &kubeconfig, &arguments)?;
    let mut expected = Vec::new();
    let own = |records: &[Record]| -> Vec<String> {
        let own = records.iter().filter(|record| is_to(record, first) && pair.lab.owns(record));
        own.map(|record| record.text("/id").to_owned()).collect()
    };
    for _ in 0..5 {
        send(&pair, first..first + 1)?;
    }
    before.wait_for("five drops", |records| own(records).len() == 5)?;
    expected.extend(own(&before.records()));
    for id in &expected {
        tail.has(id)?;
    }
    before.signal(Signal::SIGKILL)?;
    ensure!(before.finish()?.exit.code().is_none(), "killed");

    let after = start(plane, AGENTS, &pair, &history, listen)?;
    for _ in 0..5 {
        send(&pair, first..first + 1)?;
    }
    after.wait_for("five more", |records| own(records).len() == 5)?;
    expected.extend(own(&after.records()));
    let last = expected.last().context("ids")?.clone();
    tail.has(&last)?;
    for id in &expected {
        tail.has(id)?;
    }
    ensure!(expected.len() == 10, "{expected:?}");
    tail.no_doubles()?;

    // A later `tail` gets both from the history.
    let mut command = Command::new(agent::binary()?);
    command.args(["tail", "--agents-namespace", AGENTS, "-o", "json", "--kubeconfig"]).arg(&kubeconfig).args(arguments);
    let later = command.stdin(Stdio::null()).output()?;
    let ids: Vec<String> = super::records(&later)?.iter().map(|record| record.text("/id").to_owned()).collect();
    for id in &expected {
        let times = ids.iter().filter(|other| *other == id).count();
        ensure!(times == 1, "{id} {times} times of {ids:?}\n{}", super::stderr(&later));
    }
    Ok(())
}
