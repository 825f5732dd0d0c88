//! Mixed drops and pods that come and go, for as many minutes as the argument says. The only bench that can fail: memory, maps and descriptors
//! must stay flat, and every packet must be accounted for.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpol_trace_tests::bench::flood::{Flows, Sender};
use netpol_trace_tests::bench::median;
use netpol_trace_tests::bench::process;
use netpol_trace_tests::bench::watched::Watched;
use netpol_trace_tests::pair::{CLIENT, DENY_STATELESS, Pair, SERVER, pod, policy};
use netpol_trace_tests::{agent, can_run_lab, require};

const MINUTES: u64 = 20;
const ROUND: Duration = Duration::from_secs(10);
/// Packets of each round: one flow at full rate, and new flows at a fixed rate.
const ONE_FLOW: u64 = 3_200;
const NEW_FLOWS: u64 = 1_024;
const NEW_FLOWS_A_SECOND: u64 = 200;
/// Pods of a round; every round has other pods.
const CHURN: u8 = 50;
/// Growth of resident memory from the second quarter to the last that is allowed, in percent and in bytes.
const GROWTH: f64 = 10.0;
const GROWTH_OCTETS: f64 = 4e6;

struct Sample {
    resident: f64,
    maps: u64,
    map_count: usize,
    descriptors: usize,
}

fn main() -> Result<()> {
    require!(can_run_lab());
    let minutes = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(MINUTES);
    let pair = Pair::start(DENY_STATELESS)?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("drops.jsonl");
    let (manifests, file) = (pair.manifests().to_string_lossy(), format!("file:{}", log.display()));
    let arguments = ["--manifests", &manifests, "--output", &file, "--output", "stdout"];
    let agent = Watched::start_in(pair.lab.node(), &arguments, pair.lab.node().inode())?;
    let mut sender = Sender::new(&pair.client()?.netns, CLIENT, SERVER, 64, 18)?;

    println!(
        "{:>8} {:>10} {:>10} {:>6} {:>12} {:>12}",
        "minute", "RSS MiB", "maps MiB", "fds", "nft counted", "in records"
    );
    let (start, mut samples, mut next_line) = (Instant::now(), Vec::new(), 0);
    while start.elapsed() < Duration::from_secs(minutes * 60) {
        let round = samples.len();
        churn(&pair, round)?;
        let begin = Instant::now();
        sender.send(Flows::One(5000), ONE_FLOW, None)?;
        sender.send(Flows::New, NEW_FLOWS, Some(NEW_FLOWS_A_SECOND))?;
        // The rest of the round is idle, so that old entries are removed.
        std::thread::sleep(ROUND.saturating_sub(begin.elapsed()));
        let (maps, map_count) = process::maps(agent.pid())?;
        let sample = Sample {
            resident: process::resident(agent.pid())? as f64,
            maps,
            map_count,
            descriptors: process::descriptors(agent.pid())?,
        };
        if start.elapsed().as_secs() >= next_line {
            next_line += 60;
            let lines = agent.lines();
            println!(
                "{:>8} {:>10.1} {:>10.1} {:>6} {:>12} {:>12}",
                start.elapsed().as_secs() / 60,
                sample.resident / f64::from(1 << 20),
                maps as f64 / f64::from(1 << 20),
                sample.descriptors,
                pair.counted("denied")?,
                lines.packets
            );
        }
        samples.push(sample);
    }
    let (lines, exit) = agent.stop()?;
    ensure!(exit.success(), "the agent ended with {exit}");
    let counted = pair.counted("denied")?;
    println!("nft counted {counted} packets; {} in records, {} declared lost", lines.packets, lines.declared());
    let verified = Command::new(agent::binary()?).arg("verify-log").arg(&log).output().context("verify-log")?;
    println!("verify-log: {}\n{}", verified.status, String::from_utf8_lossy(&verified.stdout).trim());

    let mut wrong = Vec::new();
    if lines.packets > counted || counted > lines.packets + lines.declared() {
        wrong.push("packets are missing".to_owned());
    }
    if !verified.status.success() {
        wrong.push("the log does not verify".to_owned());
    }
    wrong.extend(growth(&samples));
    if !wrong.is_empty() {
        bail!(wrong.join("; "));
    }
    println!("flat and balanced");
    Ok(())
}

/// Sets other pods and policies, and adds an interface that stands for a pod's, which the next round removes.
fn churn(pair: &Pair, round: usize) -> Result<()> {
    let of_round = |n: u8| format!("churn-{round}-{n}");
    let address = |n: u8| [10, 246, (round % 200) as u8, n].into();
    let pods: String = (0..CHURN).map(|n| pod(&of_round(n), &[address(n)])).collect();
    pair.add("churn.yaml", &pods)?;
    pair.add("churn-policy.yaml", &policy(&of_round(0), &of_round(0)))?;
    if let Some(before) = round.checked_sub(1) {
        pair.lab.node().ip(&format!("link del churn{before}\n"))?;
    }
    pair.lab.node().ip(&format!("link add churn{round} type veth peer name peer{round}\nlink set churn{round} up\n"))
}

/// Compares the last quarter with the second; the first is for warming up.
fn growth(samples: &[Sample]) -> Vec<String> {
    let quarter = samples.len() / 4;
    let (Some(early), Some(late)) = (samples.get(quarter..2 * quarter), samples.get(3 * quarter..)) else {
        return Vec::new();
    };
    if early.is_empty() || late.is_empty() {
        return Vec::new();
    }
    let compare =
        |of: &dyn Fn(&Sample) -> f64| (median(early.iter().map(of).collect()), median(late.iter().map(of).collect()));
    let mut wrong = Vec::new();
    let (before, after) = compare(&|sample| sample.resident);
    if after > before * (1.0 + GROWTH / 100.0) && after > before + GROWTH_OCTETS {
        wrong.push(format!("resident memory grew from {before:.0} to {after:.0} bytes"));
    }
    for (what, (before, after)) in [
        ("maps", compare(&|sample| sample.map_count as f64)),
        ("maps' bytes", compare(&|sample| sample.maps as f64)),
        ("descriptors", compare(&|sample| sample.descriptors as f64)),
    ] {
        if after > before {
            wrong.push(format!("{what} grew from {before} to {after}"));
        }
    }
    wrong
}
