//! The tc hook's cost per packet, compared with an empty program on the same interface. The kernel's statistics (kernel.bpf_stats_enabled)
//! measure both in the same run, and cost time themselves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::Result;
use netpol_trace_tests::bench::process;
use netpol_trace_tests::bench::statistics::Statistics;
use netpol_trace_tests::bpf::{LoadedProgram, Order, Side, has_tcx};
use netpol_trace_tests::netns::Netns;
use netpol_trace_tests::pair::{CLIENT, CLIENT6, Pair, SERVER, SERVER6};
use netpol_trace_tests::{can_run_lab, require};

const PACKETS: u32 = 200_000;
const RUNS: usize = 5;

fn main() -> Result<()> {
    require!(can_run_lab());
    require!(has_tcx());
    let pair = Pair::start("table inet t {\n}")?;
    let agent = pair.watch_node(&["--hooks", "tc"])?;
    let empty = LoadedProgram::empty("empty")?;
    let device = &pair.client()?.device;
    let _links = [
        empty.attach(pair.lab.node(), device, Side::Ingress, Order::Last)?,
        empty.attach(pair.lab.node(), device, Side::Egress, Order::Last)?,
    ];
    let ours = || process::spent(agent.pid(), &[process::SCHED_CLS]);
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
            let before = (ours()?, empty.spent()?);
            traffic(&pair)?;
            measured.push(((ours()? - before.0).each(), (empty.spent()? - before.1).each()));
        }
        measured.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ours, empty) = measured[RUNS / 2];
        println!("{what:<44} {ours:>10.0} {empty:>10.0} {:>10.1}", ours / empty);
    }
    drop(statistics);
    agent.stop()?;
    Ok(())
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
        // ICMP's "port unreachable" may come back as an error.
        let _ = socket.send_to(b"known", to);
    }
    Ok(())
}

/// Small writes without delay: each is a segment and is acknowledged.
fn tcp(pair: &Pair) -> Result<()> {
    let address = SocketAddr::from((SERVER, 7000));
    let listener = pair.server()?.netns.run(|| TcpListener::bind(address))?;
    let mut sender = pair.client()?.netns.run(|| TcpStream::connect(address))?;
    sender.set_nodelay(true)?;
    let (mut receiver, _) = listener.accept()?;
    let mut byte = [0];
    for _ in 0..PACKETS / 10 {
        sender.write_all(b".")?;
        receiver.read_exact(&mut byte)?;
    }
    Ok(())
}

fn new_flows(pair: &Pair) -> Result<()> {
    let client = &pair.client()?.netns;
    let socket = client.run(|| UdpSocket::bind((CLIENT, 0)))?;
    // Fewer flows than the kernel's map holds.
    for port in 1..8_000 {
        let _ = socket.send_to(b"new", (SERVER, port));
    }
    // Before the next run the flows, of one packet each, must have expired, which they do after the grace time.
    std::thread::sleep(std::time::Duration::from_secs(6));
    Ok(())
}
