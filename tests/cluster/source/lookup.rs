//! `--peers=lookup`: the agent looks up pods of other nodes, and never uses a wrong name.

use std::time::Duration;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::cluster::relay::Relay;
use netpol_trace_tests::pair::{CLIENT, CLIENT6, SERVER, SERVER6};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::traffic::TcpOptions;
use netpol_trace_tests::{cluster, eventually, require, traffic};
use serde_json::{Value, json};

use super::{ApiLab, NODE, node, pod, source};

/// Shorter than TCP's first retransmission.
const ONE_SYN: Duration = Duration::from_millis(300);

/// The server is a pod of another node: the agent looks it up, confirms it, and stops using the name when the address has a new owner.
#[test]
fn a_remote_peer_is_looked_up_and_a_reused_address_never_has_the_old_name() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    api_lab.apply(&node("node-b", "172.18.0.3", "10.244.2.0/24"))?;
    api_lab.delete(&pod("server", "node-a", &[]))?;
    api_lab.apply(&pod("first", "node-b", &[SERVER.into()]))?;
    let agent = api_lab.agent(&["--peers", "lookup"])?;
    let pods = source(&agent.records(), "pods").unwrap_or_default();
    assert_eq!(pods["objects"]["Pod"], 1, "only this node's are watched: {pods}");
    assert!(pods["detail"].to_string().contains("looked up"), "{pods}");
    let record = api_lab.send(&agent)?;
    assert_eq!(
        (record.pod("source"), record.pod("destination")),
        ("lab/client".into(), "lab/first".into()),
        "{record}"
    );
    // Every later record is confirmed too.
    for _ in 0..3 {
        let record = api_lab.send(&agent)?;
        assert_eq!(record.pod("destination"), "lab/first", "{record}");
    }
    api_lab.delete(&pod("first", "node-b", &[]))?;
    api_lab.apply(&pod("second", "node-b", &[SERVER.into()]))?;
    eventually("the new owner's name", || {
        let record = api_lab.send(&agent)?;
        let name = record.pod("destination");
        assert_ne!(name, "lab/first", "the old name: {record}");
        assert!(name == "lab/second" || record.text("/destination/kind") == "unknown", "{record}");
        Ok((name == "lab/second").then_some(()))
    })?;
    api_lab.delete(&pod("second", "node-b", &[]))?;
    let record = api_lab.send(&agent)?;
    assert_eq!(record.text("/destination/kind"), "unknown", "nobody's: {record}");
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}

/// A node with these podCIDRs.
fn dual_node(name: &str, ip: &str, pod_cidrs: &[&str]) -> Value {
    let mut node = node(name, ip, pod_cidrs[0]);
    node["spec"]["podCIDRs"] = json!(pod_cidrs);
    node
}

/// Sends to the server's IPv6 address and returns the drop's record.
fn send6(api_lab: &ApiLab, agent: &Agent) -> Result<Record> {
    let client = &api_lab.pair.client()?.netns;
    let from = traffic::udp(client, CLIENT6.into(), [(SERVER6, 5000).into()], 32)?;
    let mine = |r: &Record| r.is_drop() && api_lab.pair.lab.owns(r) && r.address("source") == Some(from);
    agent.wait_for("the record of the packet sent", |records| records.iter().any(mine))?;
    agent.records().into_iter().find(mine).context("it was there")
}

/// Numbers of pods found by EndpointSlice, by node, by address.
fn found_by(agent: Agent) -> Result<[u64; 3]> {
    let run = agent.stop()?;
    run.balance()?;
    let lookups = source(&run.records, "lookups").context("the lookups' status")?;
    let detail = lookups["detail"].as_str().unwrap_or_default();
    let count = |way: &str| -> Result<u64> {
        let rest = detail.split_once(&format!("{way}: ")).with_context(|| detail.to_owned())?.1;
        Ok(rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?)
    };
    Ok([count("EndpointSlice")?, count("by node")?, count("by address")?])
}

/// Each kind of lookup on a real server, where only that kind finds the pod.
#[test]
fn a_remote_peer_is_found_by_slice_by_node_and_by_address() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::empty()?;
    api_lab.apply(&node(NODE, "172.18.0.2", "10.244.9.0/24"))?;
    api_lab.apply(&pod("client", NODE, &[CLIENT.into(), CLIENT6.into()]))?;
    // The server's addresses are in node-b's podCIDRs.
    api_lab.apply(&dual_node("node-b", "172.18.0.3", &["10.244.1.0/24", "fd00:10:244:1::/64"]))?;
    api_lab.apply(&node("node-c", "172.18.0.4", "10.250.0.0/24"))?;
    let agent = || api_lab.agent(&["--peers", "lookup"]);

    // A field selector matches only the first of a pod's addresses.
    let both = pod("both", "node-b", &[SERVER.into(), SERVER6.into()]);
    api_lab.apply(&both)?;
    let by_node = agent()?;
    for record in [send6(&api_lab, &by_node)?, api_lab.send(&by_node)?] {
        assert_eq!(record.pod("destination"), "lab/both", "{record}");
    }
    assert_eq!(found_by(by_node)?, [0, 2, 0]);
    api_lab.delete(&both)?;

    // The address is not in its node's podCIDR, so a lookup by node does not find it.
    let strayed = pod("strayed", "node-c", &[SERVER.into()]);
    api_lab.apply(&strayed)?;
    let by_address = agent()?;
    assert_eq!(api_lab.send(&by_address)?.pod("destination"), "lab/strayed");
    assert_eq!(found_by(by_address)?, [0, 0, 1]);
    api_lab.delete(&strayed)?;

    // No field selector matches an IPv6 address on that node; the EndpointSlice names the pod.
    let sliced = pod("sliced", "node-c", &["10.250.0.9".parse()?, SERVER6.into()]);
    api_lab.apply(&sliced)?;
    api_lab.apply(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
        "metadata": { "namespace": "lab", "name": "sliced-abcde", "labels": { "kubernetes.io/service-name": "sliced" } },
        "endpoints": [{
            "addresses": [SERVER6], "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "namespace": "lab", "name": "sliced" },
        }],
        "ports": [{ "name": "", "port": 5000, "protocol": "UDP" }],
    }))?;
    let by_slice = agent()?;
    assert_eq!(send6(&api_lab, &by_slice)?.pod("destination"), "lab/sliced");
    assert_eq!(found_by(by_slice)?, [1, 0, 0]);
    Ok(())
}

/// With the tc hook alone, a connection that the enforcer drops is `unanswered`; its record has the peer's name too.
#[test]
fn an_unanswered_connection_waits_for_its_peers_name() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    api_lab.apply(&node("node-b", "172.18.0.3", "10.244.2.0/24"))?;
    api_lab.delete(&pod("server", NODE, &[]))?;
    api_lab.apply(&pod("first", "node-b", &[SERVER.into()]))?;
    // The hook is on the interfaces of the agent's own network namespace.
    let _relay = Relay::start(api_lab.pair.lab.node(), api_lab.plane.address())?;
    let kubeconfig = api_lab.plane.kubeconfig().display().to_string();
    let arguments = ["--hooks", "tc", "--node-name", NODE, "--peers", "lookup", "--kubeconfig", &kubeconfig];
    let agent = Agent::start_in(api_lab.pair.lab.node(), &arguments)?;
    let client = &api_lab.pair.client()?.netns;
    traffic::tcp(client, CLIENT.into(), (SERVER, 80).into(), ONE_SYN, TcpOptions::default())?;
    agent.wait_for("an unanswered connection", |records| records.iter().any(|r| r.kind() == "unanswered"))?;
    let run = agent.stop()?;
    let unanswered = run.records.iter().find(|record| record.kind() == "unanswered").context("it was there")?;
    assert_eq!(
        (unanswered.pod("source"), unanswered.pod("destination")),
        ("lab/client".into(), "lab/first".into()),
        "{unanswered}"
    );
    assert_eq!(unanswered.text("/enrichment"), "complete", "{unanswered}");
    assert_eq!(run.stopped()?.number("/connections/unanswered"), Some(1), "{}", run.stopped()?);
    Ok(())
}
