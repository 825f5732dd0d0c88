//! Who opened the connection of a dropped packet, for each mechanism that drops packets which no conntrack entry explains.
//!
//! A policy lets the client reach the server's ports 80 and 53, and the server may open nothing. Each enforcer drops the packets of one
//! connection that are marked by their type of service. Whoever takes the sender for the opener reads the server's answers as
//! forbidden connections to the client's port.

use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::packet::{self, ACK, RST, SYN};
use netpol_trace_tests::pair::{CLIENT, SERVER};
use netpol_trace_tests::program::{CountingProgram, Kind, Match, XdpMode};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::row::Row;
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{iptables, require, test_name, traffic};

/// Type of service of the packets that the enforcers drop: DSCP EF.
const TOS: u8 = 0xb8;

const ALLOWED: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-server, namespace: lab, creationTimestamp: \"2026-10-05T08:14:20Z\"}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 53}]
";

/// The packets of each row: name, from the server, what the IP header carries, and what its record must say.
struct Sent {
    what: &'static str,
    from_server: bool,
    protocol: u8,
    payload: Vec<u8>,
    cause: &'static [&'static str],
    /// The client's port if the record must name the client as the source; `None`: the record has the packet's own direction.
    opener: Option<u16>,
}

const NOT_A_POLICYS: &[&str] = &["unknown", "disagrees"];

fn packets() -> Vec<Sent> {
    let server = |port: u16| (SERVER, port).into();
    let client = |port: u16| (CLIENT, port).into();
    let answer = |what, port, flags, cause, opener| Sent {
        what,
        from_server: true,
        protocol: 6,
        payload: packet::tcp(server(80), client(port), flags),
        cause,
        opener,
    };
    // An ICMP port unreachable (type 3, code 3) about the client's datagram.
    let mut unreachable = vec![3, 3, 0, 0, 0, 0, 0, 0];
    unreachable.extend(packet::ipv4(CLIENT, SERVER, 17, &[], 0, &packet::udp(40005, 53, b"question")));
    vec![
        answer("a SYN-ACK", 40001, SYN | ACK, NOT_A_POLICYS, Some(40001)),
        answer("a segment of the server", 40002, ACK, &["connection_unknown"], None),
        answer("a RST of the server", 40003, RST | ACK, &["connection_unknown"], None),
        Sent {
            what: "a UDP answer",
            from_server: true,
            protocol: 17,
            payload: packet::udp(53, 40004, b"answer"),
            cause: &["connection_unknown"],
            opener: None,
        },
        Sent {
            what: "an ICMP error",
            from_server: true,
            protocol: 1,
            payload: unreachable,
            cause: NOT_A_POLICYS,
            opener: Some(40005),
        },
        // To a port that is closed to the client: a packet that opens a connection is decided as before.
        Sent {
            what: "a SYN to a closed port",
            from_server: false,
            protocol: 6,
            payload: packet::tcp(client(40006), server(443), SYN),
            cause: &["policy"],
            opener: Some(40006),
        },
        // Policies deny it in both directions, whoever opened.
        Sent {
            what: "a segment to a closed port",
            from_server: false,
            protocol: 6,
            payload: packet::tcp(client(40007), server(443), ACK),
            cause: &["policy"],
            opener: Some(40007),
        },
        Sent {
            what: "a segment from a closed port",
            from_server: true,
            protocol: 6,
            payload: packet::tcp(server(443), client(40008), ACK),
            cause: &["policy"],
            opener: Some(40008),
        },
    ]
}

/// Runs a row whose enforcer `enforce` puts in place. What `enforce` returns keeps it there.
fn row<T>(mut row: Row, enforce: impl FnOnce(&Row) -> Result<T>) -> Result<()> {
    row.pair.add("policy.yaml", ALLOWED)?;
    let _enforcer = enforce(&row)?;
    row.watch()?;
    let sent = packets();
    for packet in &sent {
        let (from, to, host) = if packet.from_server {
            (SERVER, CLIENT, row.pair.server()?)
        } else {
            (CLIENT, SERVER, row.pair.client()?)
        };
        let mut bytes = packet::ipv4(from, to, packet.protocol, &[], 0, &packet.payload);
        bytes[1] = TOS;
        traffic::whole(&host.netns, IpAddr::V4(to), &bytes)?;
        row.note((from, 0).into(), (to, 0).into());
    }
    let records = row
        .lab_records("a record of each packet", |records| sent.iter().all(|packet| find(records, packet).is_some()))?;
    for packet in &sent {
        let record = find(&records, packet).context(packet.what)?;
        check(packet, record)?;
    }
    Ok(())
}

/// The record of a packet: each has a port of the client's that no other has.
fn find<'a>(records: &'a [Record], packet: &Sent) -> Option<&'a Record> {
    let number = |at: usize| u64::from(u16::from_be_bytes([packet.payload[at], packet.payload[at + 1]]));
    let port = match (packet.protocol, packet.from_server) {
        (1, _) => number(8 + 20),
        (_, true) => number(2),
        (_, false) => number(0),
    };
    let transport = match packet.protocol {
        1 => "icmp",
        6 => "tcp",
        _ => "udp",
    };
    records.iter().find(|record| {
        record.text("/network/transport") == transport
            && (record.number("/source/port") == Some(port) || record.number("/destination/port") == Some(port))
    })
}

fn check(packet: &Sent, record: &Record) -> Result<()> {
    let what = packet.what;
    ensure!(packet.cause.contains(&record.cause()), "{what}: cause {}: {record}", record.cause());
    let client_is_source = record.pod("source") == "lab/client";
    ensure!(
        client_is_source == (packet.opener.is_some() || !packet.from_server),
        "{what}: source {}: {record}",
        record.pod("source")
    );
    ensure!(
        record.number("/source/port") == packet.opener.map(u64::from) || packet.opener.is_none(),
        "{what}: {record}"
    );
    let reply = record.value()["reply"] == true;
    ensure!(reply == (packet.from_server && packet.opener.is_some()), "{what}: reply {reply}: {record}");
    if record.cause() == "policy" {
        ensure!(record.text("/direction") == "ingress", "{what}: direction {}: {record}", record.text("/direction"));
        ensure!(
            record.text("/hint/code") == "port" && record.text("/hint/message").contains("443"),
            "{what}: {record}"
        );
        ensure!(record.text("/verdict/ingress/nearest/policy") == "lab/deny-server", "{what}: {record}");
    } else {
        ensure!(record.text("/hint/code").is_empty() && record.text("/direction").is_empty(), "{what}: {record}");
    }
    if record.cause() == "connection_unknown" {
        ensure!(record.text("/verdict/result") == "undetermined", "{what}: {record}");
        ensure!(record.text("/verdict/basis") == "opener_unknown", "{what}: {record}");
    }
    Ok(())
}

fn ifindex(row: &Row, device: &str) -> Result<u32> {
    row.pair.lab.node().run(|| nix::net::if_::if_nametoindex(device)).with_context(|| format!("device {device}"))
}

/// A program on both pods' host-side devices.
fn on_both(
    row: &Row,
    kind: Kind,
    attach: impl Fn(&CountingProgram, u32) -> Result<OwnedFd> + Sync,
) -> Result<Vec<OwnedFd>> {
    let program = CountingProgram::load_matching(kind, Match::Tos(TOS))?;
    let mut links = Vec::new();
    for device in ["veth0", "veth1"] {
        let index = ifindex(row, device)?;
        let link = row.pair.lab.node().run(|| attach(&program, index));
        links.push(link.map_err(|error| missing(format!("{error:#}")))?);
    }
    Ok(links)
}

#[test]
fn tcx() -> Result<()> {
    let lab = require!(Row::new(test_name!()));
    let _: () = require!(row(lab, |row| on_both(row, Kind::Tc, |program, index| program.attach_tcx(index, true))));
    Ok(())
}

#[test]
fn xdp() -> Result<()> {
    let lab = require!(Row::new(test_name!()));
    let attach = |program: &CountingProgram, index| program.attach_xdp(index, XdpMode::Generic);
    let _: () = require!(row(lab, |row| on_both(row, Kind::Xdp, attach)));
    Ok(())
}

#[test]
fn netkit() -> Result<()> {
    let lab = require!(Row::with_netkit(test_name!()));
    let attach = |program: &CountingProgram, index| program.attach_netkit(index, true);
    let _: () = require!(row(lab, |row| on_both(row, Kind::Tc, attach)));
    Ok(())
}

/// An enforcer without conntrack.
#[test]
fn stateless_nftables() -> Result<()> {
    let lab = require!(Row::new(test_name!()));
    row(lab, |row| {
        row.pair.lab.enforce(
            "table inet t {\nchain c {\ntype filter hook forward priority 0;\nip dscp ef counter drop comment \"row\"\n}\n}\n",
        )
    })
}

#[test]
fn nft_bridge_family() -> Result<()> {
    let lab = require!(Row::new(test_name!()));
    row(lab, |row| {
        super::rows::bridges::bridge(row)?;
        row.pair.lab.enforce(
            "table bridge t {\nchain c {\ntype filter hook forward priority 0;\nip dscp ef counter drop comment \"row\"\n}\n}\n",
        )
    })
}

#[test]
fn stateless_iptables_legacy() -> Result<()> {
    let lab = require!(Row::new(test_name!()));
    let _: () = require!(row(lab, |row| {
        let rule = "-A FORWARD -m tos --tos 0xb8/0xff -m comment --comment row -j DROP";
        iptables::load(row.pair.lab.node(), "legacy", rule)
            .map_err(|error| missing(format!("no iptables-legacy with `tos` here: {error:#}")))
    }));
    Ok(())
}

/// A connection that conntrack knows: its replies are nobody's denied connection, and a policy that comes later denies it in the
/// opener's direction.
#[test]
fn an_established_connection() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.add("policy.yaml", ALLOWED)?;
    let lab = &row.pair.lab;
    lab.enforce("table inet t {\nchain c {\ntype filter hook forward priority 0;\nct state invalid drop\n}\n}\n")?;
    let listener = row.pair.server()?.netns.run(|| TcpListener::bind((SERVER, 80)))?;
    let mut client = row.pair.client()?.netns.run(|| TcpStream::connect((SERVER, 80)))?;
    let (mut server, _) = listener.accept()?;
    let port = u64::from(client.local_addr()?.port());
    row.watch()?;

    let of_connection = |record: &Record, cause: &str, reply: bool| {
        record.cause() == cause
            && (record.value()["reply"] == true) == reply
            && record.number("/source/port") == Some(port)
            && record.number("/destination/port") == Some(80)
            && record.pod("source") == "lab/client"
    };
    row.pair.lab.enforce("add rule inet t c ip saddr 10.244.1.3 tcp sport 80 counter drop comment \"row\"")?;
    server.write_all(b"answer")?;
    let records = row.lab_records("the dropped answer", |records| !records.is_empty())?;
    ensure!(records.iter().all(|record| of_connection(record, "disagrees", true)), "{records:?}");
    ensure!(records.iter().all(|record| record.text("/hint/code").is_empty()), "{records:?}");

    row.pair.add("policy.yaml", &ALLOWED.replace("{protocol: TCP, port: 80}", "{protocol: TCP, port: 8080}"))?;
    row.records_of_all("the policy's change", |records| records.iter().any(|record| record.kind() == "policy_change"))?;
    row.pair.lab.enforce("add rule inet t c ip daddr 10.244.1.3 tcp dport 80 counter drop comment \"row\"")?;
    client.write_all(b"question")?;
    let is_denied = |record: &Record| {
        of_connection(record, "policy", false)
            && record.text("/direction") == "ingress"
            && record.text("/hint/code") == "port"
    };
    row.lab_records("the packet that the new policy denies", |records| records.iter().any(is_denied))?;
    Ok(())
}
