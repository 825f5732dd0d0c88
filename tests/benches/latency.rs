//! The time from a dropped packet to its line, and from exec to attached hooks, with the demo's manifests and real drops.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::bench::flood::{Flows, Sender};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{agent, can_run_lab, require};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const STARTS: usize = 9;
const PACKETS: u64 = 500;
/// The interval between packets, so that each one wakes the agent.
const PAUSE: Duration = Duration::from_millis(7);
/// With a record for each packet.
const RATE: u64 = 10_000;
const SECONDS: u64 = 10;
/// Sockets with 64,000 flows each.
const SOCKETS: usize = 2;

fn main() -> Result<()> {
    require!(can_run_lab());
    let mut started = Vec::new();
    for _ in 0..STARTS {
        let (mut child, took) = start(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/manifests"), &[])?;
        started.push(took);
        stop(&mut child)?;
    }
    let all = ["--aggregation-window", "0s", "--max-records-per-second", "0"];
    let alone = latencies(&all, PACKETS, |pair| {
        pair.client()?.netns.run(|| -> Result<()> {
            let socket = UdpSocket::bind((CLIENT, 0))?;
            for _ in 0..PACKETS {
                socket.send_to(b"bench", (SERVER, 9))?;
                // The pace of the load, not a wait for a result.
                std::thread::sleep(PAUSE);
            }
            Ok(())
        })
    })?;
    let many = latencies(&all, RATE * SECONDS, |pair| {
        let mut sender = Sender::new(&pair.client()?.netns, CLIENT, SERVER, SOCKETS, 18)?;
        sender.send(Flows::New, RATE * SECONDS, Some(RATE)).map(drop)
    })?;
    println!("{:<60} {:>10} {:>10} {:>10}", "", "median", "p99", "max");
    row("exec to attached, demo manifests, ms", started);
    row("packet to written line, one at a time, ms", alone);
    row(&format!("packet to written line, {RATE} a second for {SECONDS} s, all written, ms"), many);
    Ok(())
}

/// Starts the agent and waits for its `started` status.
fn start(manifests: &str, options: &[&str]) -> Result<(Child, Duration)> {
    let binary = agent::binary()?;
    let begin = Instant::now();
    let mut child = Command::new(binary)
        .args(["agent", "--manifests", manifests])
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut first = String::new();
    let stdout = child.stdout.as_mut().context("a piped stdout")?;
    // Byte by byte, so that nothing after the first line is read.
    let mut unbuffered = BufReader::with_capacity(1, stdout);
    unbuffered.read_line(&mut first)?;
    let took = begin.elapsed();
    ensure!(Record::parse(&first)?.text("/phase") == "started", "{first}");
    Ok((child, took))
}

fn stop(child: &mut Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    child.wait()?;
    Ok(())
}

/// Sends datagrams that the policy drops. Returns for each the time from the kernel's time stamp to the reading of its line.
fn latencies(options: &[&str], packets: u64, send: impl FnOnce(&Pair) -> Result<()>) -> Result<Vec<Duration>> {
    let pair = Pair::start(DENY)?;
    let (mut child, _) = start(&pair.manifests().to_string_lossy(), options)?;
    let stdout = child.stdout.take().context("a piped stdout")?;
    let netns = format!("\"netns\":{}", pair.lab.node().inode());
    let reader = std::thread::spawn(move || -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        for line in BufReader::with_capacity(1 << 20, stdout).lines() {
            let line = line?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            // Parsing a whole line would take longer than writing it.
            if line.contains("\"kind\":\"drop\"") && line.contains(&netns) {
                let (_, time) = line.split_once("\"time\":\"").context("a time")?;
                let stamp: jiff::Timestamp = time.split('"').next().unwrap_or_default().parse()?;
                let stamp = Duration::from_nanos(u64::try_from(stamp.as_nanosecond())?);
                took.push(now.saturating_sub(stamp));
            }
        }
        Ok(took)
    });
    send(&pair)?;
    stop(&mut child)?;
    let took = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let counted = pair.counted("denied")?;
    ensure!(took.len() as u64 >= packets && took.len() as u64 == counted, "{} lines for {counted} packets", took.len());
    Ok(took)
}

fn row(what: &str, mut values: Vec<Duration>) {
    values.sort_unstable();
    let ms = |at: usize| values.get(at.min(values.len().saturating_sub(1))).map_or(0.0, |d| d.as_secs_f64() * 1e3);
    println!(
        "{what:<60} {:>10.2} {:>10.2} {:>10.2}",
        ms(values.len() / 2),
        ms(values.len() * 99 / 100),
        ms(values.len() - 1)
    );
}
