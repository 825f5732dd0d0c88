//! The tc hook changes no byte of the traffic and no verdict of other programs.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::bpf::{LoadedProgram, Order, Side, has_tcx};
use netpol_trace_tests::capture::Capture;
use netpol_trace_tests::pair::{CLIENT, CLIENT6, Pair, SERVER, SERVER6};
use netpol_trace_tests::record::drops;
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{can_run_lab, packet, require, traffic};

use crate::tc::BOTH;

const OPEN: &str = "table inet t {\n}";
/// The program that stands in for the CNI's drops datagrams of this size.
const DROPPED: usize = 100;
const PASSED: usize = 101;
/// Its length from L2 on.
const DROPPED_FRAME: u32 = 14 + 20 + 8 + DROPPED as u32;

/// Packets arrive the same with and without the hook: whole ones, fragments, options, extension headers, ICMP errors, malformed ones. Then
/// a stream in offloaded segments.
#[test]
fn no_byte_changes() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(OPEN)?;
    let without = (packets(&pair)?, stream(&pair)?);
    let agent = pair.watch_node(&BOTH)?;
    let with = (packets(&pair)?, stream(&pair)?);
    let run = agent.stop()?;
    run.balance()?;
    assert_eq!(without.0.len(), with.0.len());
    for (at, (without, with)) in without.0.iter().zip(&with.0).enumerate() {
        assert_eq!(without, with, "packet {at}");
    }
    assert!(without.1 == with.1, "a stream arrived changed");
    let stopped = run.stopped()?;
    // The hook saw them: each SYN, INIT and first datagram is a connection at both interfaces.
    assert!(stopped.number("/connections/opened") >= Some(10), "{stopped}");
    // The packet with too many extension headers, at both.
    assert!(stopped.number("/connections/unread") >= Some(2), "{stopped}");
    Ok(())
}

/// Sends packets of every kind and returns how they arrive.
fn packets(pair: &Pair) -> Result<Vec<Vec<u8>>> {
    let capture = Capture::start(&pair.server()?.netns, vec![SERVER.into(), SERVER6.into()])?;
    let client = &pair.client()?.netns;
    // Until neighbours are resolved, packets wait and may be reordered.
    for (from, to) in [(CLIENT.into(), SERVER.into()), (CLIENT6.into(), SERVER6.into())] {
        let (from, to): (IpAddr, IpAddr) = (from, to);
        traffic::udp(client, from, [SocketAddr::new(to, 1)], 1)?;
        capture.take(1)?;
    }
    let (from, to) = (SocketAddr::from((CLIENT, 4000)), SocketAddr::from((SERVER, 4001)));
    let v4 = |protocol, payload: &[u8]| packet::ipv4(CLIENT, SERVER, protocol, &[], 0, payload);
    let v6 = |next, payload: &[u8]| packet::ipv6(CLIENT6, SERVER6, next, payload);
    let mut sent = Vec::new();
    for flags in [packet::SYN, packet::SYN | packet::ACK, packet::ACK, packet::RST, packet::FIN | packet::ACK, 0] {
        sent.push(v4(6, &[packet::tcp(from, to, flags), vec![b'.'; 1000]].concat()));
    }
    sent.push(v4(17, &packet::udp(4000, 4001, b"")));
    sent.push(v4(17, &packet::udp(53, 4001, &[0xc0; 400])));
    sent.push(v4(132, &packet::sctp_init(4000, 4001)));
    sent.push(v4(253, b"an experiment"));
    sent.push(v4(6, b"cut"));
    sent.push(v4(1, &packet::echo_request(8, 7, 1)));
    // An ICMP error that quotes a packet of the server's, and one that quotes nothing.
    let quoted = packet::ipv4(SERVER, CLIENT, 17, &[], 0, &packet::udp(9, 9, b"quoted"));
    sent.push(v4(1, &[&[3, 3, 0, 0, 0, 0, 0, 0], quoted.as_slice()].concat()));
    sent.push(v4(1, &[3, 3, 0, 0]));
    // Options (no operation), and fragments: first, middle, last.
    sent.push(packet::ipv4(CLIENT, SERVER, 17, &[1; 8], 0, &packet::udp(4000, 4002, b"options")));
    let datagram = packet::udp(4000, 4003, &[b'f'; 1200]);
    for (fragment, part) in [(0x2000, &datagram[..400]), (0x2000 | 50, &datagram[400..800]), (100, &datagram[800..])] {
        sent.push(packet::ipv4(CLIENT, SERVER, 17, &[], fragment, part));
    }
    // Hop-by-hop and destination options, a fragment, more headers than a parser follows, a truncated header.
    let udp = packet::udp(4000, 4004, b"six");
    let padding = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    sent.push(v6(17, &udp));
    sent.push(v6(0, &[padding(60), padding(17), udp.clone()].concat()));
    sent.push(v6(44, &[vec![17, 0, 0, 1, 0, 0, 0, 9], udp.clone()].concat()));
    let many: Vec<u8> = (0..8).flat_map(|i| padding(if i == 7 { 17 } else { 60 })).collect();
    sent.push(v6(60, &[many, udp].concat()));
    sent.push(v6(60, &[17, 200, 0, 0]));
    for packet in &sent {
        let to = if packet[0] >> 4 == 4 { SERVER.into() } else { SERVER6.into() };
        traffic::whole(client, to, packet).with_context(|| format!("send {packet:?}"))?;
    }
    capture.take(sent.len())
}

/// Sends a stream of 4 MiB, in segments as big as the kernel makes them, and returns what arrived.
fn stream(pair: &Pair) -> Result<Vec<u8>> {
    let address = SocketAddr::from((SERVER, 7000));
    let listener = pair.server()?.netns.run(|| TcpListener::bind(address))?;
    let mut sender = pair.client()?.netns.run(|| TcpStream::connect(address))?;
    let (mut receiver, _) = listener.accept()?;
    let bytes: Vec<u8> = (0..4u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let writer = thread::spawn(move || sender.write_all(&bytes));
    let mut arrived = Vec::new();
    receiver.read_to_end(&mut arrived)?;
    writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    assert_eq!(arrived.len(), 4 << 20);
    Ok(arrived)
}

/// A CNI's program decides as before, whether it was attached before our program, after it or in front of it. In the last case the status
/// says so.
#[test]
fn a_cnis_tcx_program_keeps_its_verdicts() -> Result<()> {
    require!(can_run_lab());
    require!(has_tcx());
    let program = LoadedProgram::dropping("cni_policy", DROPPED_FRAME)?;
    for (when, order, in_front) in
        [("before", Order::Last, false), ("after", Order::Last, false), ("after", Order::First, true)]
    {
        let pair = Pair::start(OPEN)?;
        let attach = || {
            let node = pair.lab.node();
            let (client, server) = (&pair.client()?.device, &pair.server()?.device);
            anyhow::Ok([
                program.attach(node, client, Side::Ingress, order)?,
                program.attach(node, server, Side::Egress, order)?,
            ])
        };
        let mut links = Vec::new();
        if when == "before" {
            links.extend(attach()?);
        }
        let agent = pair.watch_node(&BOTH)?;
        if when == "after" {
            links.extend(attach()?);
        }
        verdicts(&pair, agent, in_front.then_some("cni_policy")).with_context(|| format!("{when}, {order:?}"))?;
    }
    Ok(())
}

/// The same with a filter of the clsact qdisc, which the agent must leave in place.
#[test]
fn a_cnis_clsact_filter_keeps_its_verdicts() -> Result<()> {
    require!(can_run_lab());
    for first in [true, false] {
        let pair = Pair::start(OPEN)?;
        let device = pair.client()?.device.clone();
        let node = pair.lab.node();
        let attach = || -> Result<()> {
            // Our clsact qdisc may be there already.
            let _ = node.command("tc", &["qdisc", "add", "dev", &device, "clsact"], "");
            // u32 at the IP header: total length 128.
            let total = format!("{:#06x}", DROPPED + 28);
            let filter = ["filter", "add", "dev", &device, "ingress", "protocol", "ip", "prio", "10", "u32"];
            let matches = ["match", "u16", &total, "0xffff", "at", "2", "action", "drop"];
            node.command("tc", &[&filter[..], &matches].concat(), "").map(drop)
        };
        if first {
            require!(attach().map_err(|error| missing(format!("no clsact with u32 here: {error:#}"))));
        }
        let agent = pair.watch_node(&BOTH)?;
        if !first {
            attach()?;
        }
        verdicts(&pair, agent, None)?;
        let left = node.command("tc", &["filter", "show", "dev", &device, "ingress"], "")?;
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(left.contains("u32"), "the CNI's filter has gone: {left:?}");
        assert!(!left.contains("netpol"), "ours stayed: {left}");
    }
    Ok(())
}

/// Datagrams of two sizes: one must arrive, one must not, and the drop's record must say tc.
fn verdicts(pair: &Pair, agent: Agent, in_front: Option<&str>) -> Result<()> {
    let capture = Capture::start(&pair.server()?.netns, vec![SERVER.into()])?;
    let client = &pair.client()?.netns;
    for size in [PASSED, DROPPED, PASSED, DROPPED, PASSED] {
        traffic::udp(client, CLIENT.into(), [(SERVER, 5000).into()], size)?;
    }
    let sizes = |packets: Vec<Vec<u8>>| packets.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(capture.take(3)?), [PASSED + 28; 3]);
    assert_eq!(sizes(capture.rest(Duration::from_millis(100))?), [0; 0], "a dropped datagram arrived");
    let run = agent.stop()?;
    run.balance()?;
    let by_tc = drops(&run.records)
        .filter(|record| pair.lab.owns(record) && record.number("/destination/port") == Some(5000))
        .filter(|record| record.text("/kernel/mechanism") == "tc")
        .count();
    assert_eq!(by_tc, 2, "{:?}", run.records);
    let stopped = run.stopped()?;
    let tc = stopped.list("/hooks").iter().find(|hook| hook["name"] == "tc").context("the tc hook's state")?;
    let detail = tc["detail"].as_str().unwrap_or_default();
    match in_front {
        Some(name) => assert!(detail.contains(name) && detail.contains("runs first"), "{detail}"),
        None => assert!(!detail.contains("runs first"), "{detail}"),
    }
    Ok(())
}
