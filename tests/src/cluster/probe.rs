//! Connects pods, and checks that client, records and the enforcer's counters agree.

use std::net::SocketAddr;
use std::thread;

use anyhow::{Context, Result};

use super::node::Node;
use crate::PATIENCE;
use crate::record::{Record, drops, packets};
use crate::server::Server;
use crate::traffic::{self, Attempt, DROPPED, Outcome, TcpOptions};

/// The name that clients ask every pod's UDP server for.
const NAME: &str = "pod.example";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// One connection, and whether the policies allow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// `namespace/name` of the pods.
    pub from: String,
    pub to: String,
    pub port: u16,
    pub protocol: Protocol,
    pub ipv6: bool,
    pub allowed: bool,
}

/// Starts servers at these ports of a pod, for both protocols and families.
pub fn serve(node: &Node, pod: &str, ports: &[u16]) -> Result<Vec<Server>> {
    let host = node.lab.host(pod)?;
    let mut servers = Vec::new();
    for port in ports {
        for address in [SocketAddr::from((host.ipv4, *port)), SocketAddr::from((host.ipv6, *port))] {
            servers.push(Server::tcp(&host.netns, address)?);
            servers.push(Server::dns(&host.netns, address, &[(NAME, host.ipv4)])?);
        }
    }
    Ok(servers)
}

/// Sends all probes at once.
pub fn send(node: &Node, probes: &[Probe]) -> Result<Vec<Attempt>> {
    thread::scope(|scope| {
        let clients: Vec<_> = probes.iter().map(|probe| scope.spawn(|| attempt(node, probe))).collect();
        let join = |client: thread::ScopedJoinHandle<'_, Result<Attempt>>| {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        clients.into_iter().map(join).collect()
    })
}

fn attempt(node: &Node, probe: &Probe) -> Result<Attempt> {
    let (client, server) = (node.lab.host(&probe.from)?, node.lab.host(&probe.to)?);
    let ip = if probe.ipv6 { server.ipv6.into() } else { server.ipv4.into() };
    let to = SocketAddr::new(ip, probe.port);
    let from = client.ip_like(ip);
    let limit = if probe.allowed { PATIENCE } else { DROPPED };
    match probe.protocol {
        Protocol::Tcp => traffic::tcp(&client.netns, from, to, limit, TcpOptions::default()),
        Protocol::Udp => traffic::dns(&client.netns, from, to, NAME, limit),
    }
    .with_context(|| format!("{probe:?}"))
}

/// What disagrees, in words. `counted` is the enforcer's own count of the packets that it rejected.
///
/// A rejected client sends one packet, and a second one if the refusal didn't reach it. So each denied probe has a record, and all records
/// together have as many packets as the enforcer counted.
pub fn compare(node: &Node, probes: &[Probe], attempts: &[Attempt], records: &[Record], counted: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let own: Vec<&Record> = drops(records).filter(|r| node.lab.owns(r) && r.cause() == "policy").collect();
    let mut claimed = 0;
    for (probe, attempt) in probes.iter().zip(attempts) {
        // The kernel limits the ICMP errors per address. A client that gets none tries until its time is up.
        let blocked = matches!(attempt.outcome, Outcome::Refused | Outcome::TimedOut);
        if blocked == probe.allowed || (probe.allowed && attempt.outcome != Outcome::Passed) {
            wrong.push(format!("{probe:?}: the client saw {:?}", attempt.outcome));
        }
        let of_it = |record: &&&Record| {
            record.address("source") == Some(attempt.source)
                && record.address("destination") == Some(attempt.destination)
        };
        let found: Vec<&Record> = own.iter().filter(of_it).copied().collect();
        claimed += found.len();
        let count = packets(found.iter().copied());
        if (count > 0) != blocked {
            wrong.push(format!("{probe:?}: {:?}, but {count} packets recorded: {found:?}", attempt.outcome));
        }
        wrong.extend(found.iter().flat_map(|record| misread(probe, record)));
    }
    if claimed != own.len() {
        let sources: Vec<SocketAddr> = attempts.iter().map(|attempt| attempt.source).collect();
        let strange = own.iter().filter(|r| r.address("source").is_none_or(|source| !sources.contains(&source)));
        wrong.push(format!(
            "{} records, {claimed} of them expected; others: {:?}",
            own.len(),
            strange.collect::<Vec<_>>()
        ));
    }
    let recorded = packets(own.iter().copied());
    if recorded != counted {
        wrong.push(format!("{recorded} packets recorded, {counted} counted by the enforcer"));
    }
    wrong
}

/// What is wrong in the record of a denied probe.
fn misread(probe: &Probe, record: &Record) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |what: &str, actual: &str, expected: &str| {
        if actual != expected {
            wrong.push(format!("{probe:?}: {what} is {actual:?}, not {expected:?}: {record}"));
        }
    };
    expect("the source", &record.pod("source"), &probe.from);
    expect("the destination", &record.pod("destination"), &probe.to);
    expect("the verdict", record.text("/verdict/result"), "denied");
    let isolated = ["ingress", "egress"].iter().any(|direction| {
        record.text(&format!("/verdict/{direction}/result")) == "denied" && !record.isolated_by(direction).is_empty()
    });
    expect("a direction denied by a named policy", if isolated { "there" } else { "missing" }, "there");
    wrong
}
