//! The agent's cost for traffic without drops: traffic between pods over the node, with the agent and without, in pairs; and the time of the
//! agent's programs per packet.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netpol_trace_tests::bench::flood::{Flows, Sender};
use netpol_trace_tests::bench::statistics::Statistics;
use netpol_trace_tests::bench::watched::Watched;
use netpol_trace_tests::bench::{median, process};
use netpol_trace_tests::netns::Netns;
use netpol_trace_tests::pair::{CLIENT, Pair, SERVER};

const PAIRS: usize = 10;
const DATAGRAMS: u64 = 200_000;
/// Bytes of a datagram with its IPv4 and UDP headers: 64.
const PAYLOAD: usize = 36;
const BULK: u64 = 1 << 30;

type Traffic = fn(&Pair) -> Result<f64>;

pub fn run() -> Result<()> {
    let pair = Pair::start("table inet t {\n}")?;
    println!("{:<28} {:>12} {:>12} {:>9} {:>16} {:>14}", "", "without", "with", "percent", "ns of programs", "frames");
    for (what, traffic) in [("UDP of 64 bytes, packets/s", udp as Traffic), ("bulk TCP, Mbit/s", tcp)] {
        let (mut without, mut with, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let alone = traffic(&pair)?;
            let agent = start(&pair)?;
            let watched = traffic(&pair)?;
            agent.stop()?;
            without.push(alone);
            with.push(watched);
            ratio.push((watched / alone - 1.0) * 100.0);
        }
        // Measured apart, since BPF statistics cost time themselves.
        let agent = start(&pair)?;
        let _statistics = Statistics::on()?;
        let before = (process::spent(agent.pid(), &[])?.ns, frames(pair.lab.node())?);
        traffic(&pair)?;
        let spent = process::spent(agent.pid(), &[])?.ns - before.0;
        // Each packet enters by one interface of the node and leaves by another.
        let frames = frames(pair.lab.node())? - before.1;
        agent.stop()?;
        println!(
            "{what:<28} {:>12.0} {:>12.0} {:>9.1} {:>16.0} {frames:>14}",
            median(without),
            median(with),
            median(ratio),
            spent as f64 / frames as f64
        );
    }
    println!(
        "ns of programs: for one frame (of TCP up to 64 kB) that the node forwards, both hooks, statistics' own time included"
    );
    Ok(())
}

fn start(pair: &Pair) -> Result<Watched> {
    let manifests = pair.manifests().to_string_lossy();
    Watched::start_in(pair.lab.node(), &["--manifests", &manifests], pair.lab.node().inode())
}

fn udp(pair: &Pair) -> Result<f64> {
    // Nobody reads the socket: datagrams that don't fit its buffer are dropped, which the agent's program sees and discards.
    let receiver = pair.server()?.netns.run(|| UdpSocket::bind((SERVER, 5000)))?;
    let drain = receiver.try_clone()?;
    drain.set_read_timeout(Some(Duration::from_millis(200)))?;
    let reader = std::thread::spawn(move || while drain.recv(&mut [0; 64]).is_ok() {});
    let mut sender = Sender::new(&pair.client()?.netns, CLIENT, SERVER, 1, PAYLOAD)?;
    let round = sender.send(Flows::One(5000), DATAGRAMS, None)?;
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    Ok(round.sent as f64 / round.took.as_secs_f64())
}

fn tcp(pair: &Pair) -> Result<f64> {
    let address = SocketAddr::from((SERVER, 7000));
    let listener = pair.server()?.netns.run(|| TcpListener::bind(address))?;
    let mut sender = pair.client()?.netns.run(|| TcpStream::connect(address))?;
    let (mut receiver, _) = listener.accept()?;
    let start = Instant::now();
    let reader = std::thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            match receiver.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    });
    let chunk = vec![0; 1 << 16];
    for _ in 0..BULK >> 16 {
        sender.write_all(&chunk)?;
    }
    drop(sender);
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    Ok(BULK as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64())
}

/// The number of frames that the node's interfaces have received.
fn frames(node: &Netns) -> Result<u64> {
    let text = node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    let veths = text.lines().filter(|line| line.trim_start().starts_with("veth"));
    let received = |line: &str| -> Result<u64> { Ok(line.split_whitespace().nth(2).context("a field")?.parse()?) };
    veths.map(received).sum()
}
