//! DNS answers are untrusted input.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::{Record, drops};
use netpol_trace_tests::server::{Server, wire_name};
use netpol_trace_tests::traffic::{self, TcpOptions};
use netpol_trace_tests::{PATIENCE, can_run_lab, require};

use crate::tc::BOTH;

const QUERIES: usize = 3000;
/// How much the agent's memory may grow.
const GROWTH_KIB: u64 = 8 * 1024;

/// Pointer loops, truncated answers, thousands of records, names of any bytes: no crash, no growth, no forged line.
#[test]
fn hostile_answers_do_no_harm() -> Result<()> {
    require!(can_run_lab());
    let mut pair = Pair::start(DENY)?;
    let dns = pair.add_outside()?;
    let _server = Server::udp_answers(&pair.lab.host("outside")?.netns, dns, answers())?;
    let agent = pair.watch_node(&BOTH)?;
    let client = &pair.client()?.netns;
    // Fills tables that are allocated once.
    ask(&pair, dns, QUERIES / 10)?;
    let before = resident_kib(&agent)?;
    ask(&pair, dns, QUERIES)?;
    traffic::tcp(client, CLIENT.into(), (SERVER, 80).into(), Duration::from_millis(300), TcpOptions::default())?;
    agent
        .wait_for("the drop", |records| drops(records).any(|record| record.number("/destination/port") == Some(80)))?;
    let after = resident_kib(&agent)?;
    assert!(after < before + GROWTH_KIB, "the agent grew from {before} to {after} KiB");
    // `stop_and_compare` fails on a line of stdout that is not a record, so no line was forged.
    let records = pair.stop_and_compare(agent, "denied")?;
    let named: Vec<&Record> = drops(&records).filter(|record| record.number("/destination/port") == Some(80)).collect();
    let names = named.first().context("the drop's record")?.list("/destination/names");
    assert!(!names.is_empty(), "the server's address was named: {named:?}");
    for name in names {
        let name = name.as_str().context("a name")?;
        assert!(name.chars().all(|c| c.is_ascii_graphic()) && !name.contains(['"', '{', '}']), "{name:?}");
    }
    Ok(())
}

/// Sends queries one after the other, each from a port of its own, and waits for each answer.
fn ask(pair: &Pair, dns: std::net::SocketAddr, count: usize) -> Result<()> {
    pair.client()?.netns.run(|| {
        for i in 0..count {
            let socket = UdpSocket::bind((CLIENT, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(dns)?;
            socket.send(&(i as u16).to_be_bytes())?;
            let mut answer = [0; 64];
            socket.recv(&mut answer).with_context(|| format!("answer {i}"))?;
        }
        Ok(())
    })
}

/// Answers without their first two bytes, the id.
fn answers() -> Vec<Vec<u8>> {
    const LOOP: [u8; 2] = [0xc0, 12];
    let evil = b"\x0dx\"}\n{\"kind\":\xff\x04\x1b[1m\0".to_vec();
    let a = |ip: Ipv4Addr| [&[0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4][..], &ip.octets()].concat();
    let asked_a = [0, 1, 0, 1];
    let good = [evil.clone(), asked_a.to_vec(), LOOP.to_vec(), a(SERVER)].concat();
    let many: Vec<u8> = (0..4000u16)
        .flat_map(|i| [LOOP.to_vec(), a(Ipv4Addr::new(198, 18, (i >> 8) as u8, i as u8))].concat())
        .collect();
    let cut = [wire_name("cut.example.org"), asked_a.to_vec(), LOOP.to_vec(), vec![0, 1, 0, 1, 0]].concat();
    let alias = [
        wire_name("alias.example.org"),
        asked_a.to_vec(),
        LOOP.to_vec(),
        vec![0, 5, 0, 1, 0, 0, 0, 9, 0, 2],
        LOOP.to_vec(),
    ];
    vec![
        header(1, &good),
        header(1, &[LOOP.to_vec(), asked_a.to_vec()].concat()),
        header(10_000, &[wire_name("many.example.org"), asked_a.to_vec(), many].concat()),
        header(1, &cut),
        header(65535, &alias.concat()),
        header(0, b""),
        vec![0x81; 3],
        vec![0xff; 512],
    ]
}

/// The rest of a header: a response to one question, without error, with `answers` records.
fn header(answers: u16, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0x81, 0x80, 0, 1];
    message.extend_from_slice(&answers.to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(body);
    message
}

fn resident_kib(agent: &Agent) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
