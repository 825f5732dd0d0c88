//! What the tc hook costs a packet, next to a program that does nothing on the same interface. The kernel's own statistics
//! (kernel.bpf_stats_enabled) measure both in the same run, and cost something themselves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::bpf::{Order, Program, Side, has_tcx};
use netpol_trace_tests::netns::Netns;
use netpol_trace_tests::pair::{CLIENT, CLIENT6, Pair, SERVER, SERVER6};
use netpol_trace_tests::skip;
use serde_json::Value;

const PACKETS: u32 = 200_000;
const RUNS: usize = 5;

/// Nanoseconds and runs, so far.
#[derive(Debug, Clone, Copy)]
struct Spent(u64, u64);

fn main() -> Result<()> {
    if skip("tc") {
        return Ok(());
    }
    if !has_tcx() {
        println!("skipped: no TCX before Linux 6.6");
        return Ok(());
    }
    let pair = Pair::start("table inet t {\n}")?;
    let agent = pair.watch_node(&["--hooks", "tc"])?;
    let empty = Program::empty("empty")?;
    let device = &pair.client()?.device;
    let _links = [
        empty.attach(pair.lab.node(), device, Side::Ingress, Order::Last)?,
        empty.attach(pair.lab.node(), device, Side::Egress, Order::Last)?,
    ];
    let ours = programs_of(agent.pid())?;
    let statistics = Statistics::on()?;
    println!("{:<44} {:>10} {:>10} {:>10}", "ns a packet, median of 5 runs", "ours", "empty", "ratio");
    for (what, traffic) in [
        ("UDP, a known connection, IPv4", &udp4 as &dyn Fn(&Pair) -> Result<()>),
        ("UDP, a known connection, IPv6", &udp6),
        ("TCP, an established connection", &tcp),
        ("UDP, every packet a new connection", &new_flows),
    ] {
        let mut measured = Vec::new();
        for _ in 0..RUNS {
            let before = (spent(&ours)?, spent(&[empty.id()?])?);
            traffic(&pair)?;
            let after = (spent(&ours)?, spent(&[empty.id()?])?);
            measured.push((each(before.0, after.0), each(before.1, after.1)));
        }
        measured.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ours, empty) = measured[RUNS / 2];
        println!("{what:<44} {ours:>10.0} {empty:>10.0} {:>10.1}", ours / empty);
    }
    drop(statistics);
    agent.stop()?;
    Ok(())
}

fn each(before: Spent, after: Spent) -> f64 {
    (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64
}

fn udp4(pair: &Pair) -> Result<()> {
    datagrams(&pair.client()?.netns, (CLIENT, 0).into(), (SERVER, 5000).into())
}

fn udp6(pair: &Pair) -> Result<()> {
    datagrams(&pair.client()?.netns, (CLIENT6, 0).into(), (SERVER6, 5000).into())
}

fn datagrams(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = netns.run(|| UdpSocket::bind(from))?;
    for _ in 0..PACKETS {
        // ICMP's "port unreachable" comes back as an error now and then.
        let _ = socket.send_to(b"known", to);
    }
    Ok(())
}

/// Small writes without delay: each a segment, and each acknowledged.
fn tcp(pair: &Pair) -> Result<()> {
    let address = SocketAddr::from((SERVER, 7000));
    let listener = pair.server()?.netns.run(|| TcpListener::bind(address))?;
    let mut sender = pair.client()?.netns.run(|| TcpStream::connect(address))?;
    sender.set_nodelay(true)?;
    let (mut receiver, _) = listener.accept()?;
    let mut octet = [0];
    for _ in 0..PACKETS / 10 {
        sender.write_all(b".")?;
        receiver.read_exact(&mut octet)?;
    }
    Ok(())
}

fn new_flows(pair: &Pair) -> Result<()> {
    let client = &pair.client()?.netns;
    let socket = client.run(|| UdpSocket::bind((CLIENT, 0)))?;
    // Fewer than the kernel's table holds.
    for port in 1..8_000 {
        let _ = socket.send_to(b"new", (SERVER, port));
    }
    // The next run must find them forgotten: flows of one packet are, after the grace time.
    std::thread::sleep(std::time::Duration::from_secs(6));
    Ok(())
}

/// The ids of the tc programs that a process holds.
fn programs_of(pid: u32) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let is_tc = info.lines().any(|line| line.starts_with("prog_type:") && line.trim_end().ends_with('3'));
        ids.extend(
            info.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()).filter(|_| is_tc),
        );
    }
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == 2, "the agent holds tc programs {ids:?}");
    Ok(ids)
}

fn spent(ids: &[u32]) -> Result<Spent> {
    let mut sum = Spent(0, 0);
    for id in ids {
        let output = Command::new("bpftool").args(["-j", "prog", "show", "id", &id.to_string()]).output()?;
        let shown: Value = serde_json::from_slice(&output.stdout).context("bpftool -j")?;
        sum.0 += shown["run_time_ns"].as_u64().unwrap_or(0);
        sum.1 += shown["run_cnt"].as_u64().unwrap_or(0);
    }
    Ok(sum)
}

/// The kernel's statistics, on until dropped.
struct Statistics(String);

impl Statistics {
    const PATH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn on() -> Result<Statistics> {
        let before = std::fs::read_to_string(Self::PATH)?;
        std::fs::write(Self::PATH, "1")?;
        Ok(Statistics(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, self.0.trim());
    }
}
