//! Drops that are not a policy's, and healthy traffic.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::pair::{CLIENT, CLIENT6, SERVER, SERVER6};
use netpol_trace_tests::record::drops;
use netpol_trace_tests::row::{DATAGRAMS, Expect, PORT, Row, by_cause, client, other, since, syns_with};
use netpol_trace_tests::server::Server;
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::traffic::{self, TcpOptions};
use netpol_trace_tests::{nft, packet, require, test_name};
use socket2::Protocol;

const BOTH: u64 = 2 * DATAGRAMS;

/// A row whose `dropped` packets are not a policy's. Before 5.17 a freed packet has no reason, and the agent looks only at drops in the
/// code of enforcers.
fn not_policy(row: Row, reason: &'static str, dropped: u64) -> Result<()> {
    if !since(5, 17) {
        return row.unseen("before Linux 5.17 the kernel gives no reason, so only enforcers' drops are recorded");
    }
    row.seen(dropped)?;
    row.check(Expect { reason, ..other("unknown", "", "not_policy") }, dropped).map(drop)
}

/// A SYN-ACK without a SYN before it, to a pod that a policy isolates.
#[test]
fn conntrack_invalid() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.enforce(
        "table inet t {\nchain c {\ntype filter hook forward priority 0;\nct state invalid counter drop comment \"row\"\n}\n}\n",
    )?;
    row.watch()?;
    for (from, to) in client(61001).into_iter().zip([(SERVER, 80).into(), SocketAddr::from((SERVER6, 80))]) {
        traffic::syn_ack(&row.pair.client()?.netns, from, to, Duration::from_millis(100))?;
        row.note_reply(from, to);
    }
    let counted = row.pair.counted("row")?;
    row.check(other("nftables", "forward", "conntrack_invalid"), counted).map(drop)
}

#[test]
fn closed_port() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.watch()?;
    row.to_server()?;
    not_policy(row, "NO_SOCKET", BOTH)
}

#[test]
fn reverse_path() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.node().sysctl("ipv4/conf/veth0/rp_filter", "1")?;
    let client = &row.pair.client()?.netns;
    client.ip("addr add 10.250.0.9/32 dev lo\n")?;
    // Otherwise its ARP requests for the router would be filtered too.
    client.sysctl("ipv4/conf/eth0/arp_announce", "2")?;
    row.watch()?;
    let to = (SERVER, PORT).into();
    let from = traffic::udp(&row.pair.client()?.netns, "10.250.0.9".parse()?, [to; DATAGRAMS as usize], 32)?;
    row.note(from, to);
    not_policy(row, "IP_RPFILTER", DATAGRAMS)
}

#[test]
fn no_route() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.watch()?;
    row.send("client", &["192.0.2.99:9".parse()?, "[2001:db8::99]:9".parse()?])?;
    not_policy(row, "", BOTH)
}

#[test]
fn neighbour_failed() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.client()?.netns.ip("route add 10.244.1.77/32 dev eth0 scope link\n")?;
    row.watch()?;
    row.send("client", &["10.244.1.77:9".parse()?])?;
    not_policy(row, "NEIGH_FAILED", DATAGRAMS)
}

#[test]
fn hop_limit() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.watch()?;
    syns_with(&mut row, &[(SERVER, 80).into(), (SERVER6, 80).into()], TcpOptions { ttl: Some(1) })?;
    not_policy(row, "", 2)
}

/// A receiver that does not keep up: datagrams that were sent and can't be read were dropped.
#[test]
fn full_socket_buffer() -> Result<()> {
    const SENT: usize = 200;
    let mut row = require!(Row::new(test_name!()));
    let socket = row.pair.server()?.netns.run(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind((SERVER, 5000))?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(4096)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    row.watch()?;
    let to = SocketAddr::from((SERVER, 5000));
    let from = traffic::udp(&row.pair.client()?.netns, CLIENT.into(), [to; SENT], 1000)?;
    row.note(from, to);
    let mut received = 0;
    while socket.recv(&mut [0; 2000]).is_ok() {
        received += 1;
    }
    let dropped = (SENT - received) as u64;
    ensure!(dropped > 0, "the buffer was never full");
    not_policy(row, "SOCKET_RCVBUFF", dropped)
}

/// A shaper with a queue of one packet.
#[test]
fn full_queue() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    let shaper = "qdisc add dev veth1 root tbf rate 8kbit burst 1540 limit 1600";
    let shaped = row.pair.lab.node().command("tc", &shaper.split(' ').collect::<Vec<_>>(), "");
    require!(shaped.map_err(|error| missing(format!("no tbf here: {error:#}"))));
    let _socket = row.pair.server()?.netns.run(|| UdpSocket::bind((SERVER, 5000)))?;
    row.watch()?;
    let to = SocketAddr::from((SERVER, 5000));
    let from = traffic::udp(&row.pair.client()?.netns, CLIENT.into(), [to; 30], 1000)?;
    row.note(from, to);
    let output = row.pair.lab.node().command("tc", &["-s", "qdisc", "show", "dev", "veth1"], "")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let dropped = text.split("(dropped ").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok());
    let dropped: u64 = dropped.with_context(|| format!("no drop count in {text}"))?;
    ensure!(dropped > 0, "the queue was never full: {text}");
    not_policy(row, "", dropped)
}

/// A sidecar's rules in the pod's own network namespace, on both sides of a connection.
fn sidecar(test: &'static str, host: &str, hook: &'static str) -> Result<()> {
    let mut row = Row::new(test)?;
    nft::load(
        &row.pair.lab.host(host)?.netns,
        &format!(
            "table inet t {{\nchain c {{\ntype filter hook {hook} priority 0;\nudp dport 9 counter drop comment \"row\"\n}}\n}}\n"
        ),
    )?;
    row.watch()?;
    row.to_server()?;
    let counted = nft::rule_counters(&row.pair.lab.host(host)?.netns)?.remove("row").context("the rule's counter")?;
    let mechanism = row.nftables_mechanism_if_unread(counted)?;
    row.check(other(mechanism, hook, "pod_local"), counted).map(drop)
}

#[test]
fn sidecar_input() -> Result<()> {
    require!(sidecar(test_name!(), "server", "input"));
    Ok(())
}

#[test]
fn sidecar_output() -> Result<()> {
    require!(sidecar(test_name!(), "client", "output"));
    Ok(())
}

/// Bulk TCP, ping, and UDP in both directions, over both families: no record, even with --all-drops.
#[test]
fn healthy_traffic() -> Result<()> {
    const BULK: usize = 4 << 20;
    let mut row = require!(Row::new(test_name!()));
    row.watch()?;
    for (from, to) in [(CLIENT.into(), SERVER.into()), (CLIENT6.into(), SERVER6.into())] {
        let (from, to): (std::net::IpAddr, std::net::IpAddr) = (from, to);
        let (client, server) = (&row.pair.client()?.netns, &row.pair.server()?.netns);
        let greeter = Server::tcp(server, (to, 80).into())?;
        let mut stream = client.run(|| TcpStream::connect(greeter.address()))?;
        stream.write_all(&vec![0; BULK])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
        let (icmp, kind) = if to.is_ipv4() { (Protocol::ICMPV4, 8) } else { (Protocol::ICMPV6, 128) };
        traffic::raw(client, from, to, icmp, &packet::echo_request(kind, 7, 1))?;
        let there = server.run(|| UdpSocket::bind((to, 5000)))?;
        let here = client.run(|| UdpSocket::bind((from, 0)))?;
        there.set_read_timeout(Some(netpol_trace_tests::PATIENCE))?;
        here.set_read_timeout(Some(netpol_trace_tests::PATIENCE))?;
        here.send_to(b"ping", (to, 5000))?;
        let (_, source) = there.recv_from(&mut [0; 16])?;
        there.send_to(b"pong", source)?;
        here.recv_from(&mut [0; 16])?;
    }
    let (pair, run) = row.finish(Expect::default(), 0)?;
    let example = drops(&run.records).find(|record| pair.lab.owns(record)).map(ToString::to_string);
    ensure!(example.is_none(), "healthy traffic: {:?}: {example:?}", by_cause(&pair, &run));
    Ok(())
}
