//! The agent at rest: its size, its start, its memory and its maps with 1,000 pods.

use std::time::{Duration, Instant};

use anyhow::Result;
use netpol_trace_tests::agent;
use netpol_trace_tests::bench::watched::Watched;
use netpol_trace_tests::bench::{median, process};
use netpol_trace_tests::pair::{Pair, pod, policy};

const PODS: u16 = 1_000;
const STARTS: usize = 9;
/// How long the agent is idle before it counts as at rest.
const REST: Duration = Duration::from_secs(5);

pub fn run() -> Result<()> {
    let pair = Pair::start("table inet t {\n}")?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("{:<52} {:>10.1}", "binary, MiB", mib(std::fs::metadata(agent::binary()?)?.len()));
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/manifests");
    let mut started = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        let watched = Watched::start_in(pair.lab.node(), &["--manifests", demo], 0)?;
        started.push(begin.elapsed().as_secs_f64() * 1e3);
        watched.stop()?;
    }
    println!("{:<52} {:>10.0}", "exec to attached, demo manifests, ms, median of 9", median(started));

    let name = |number: u16| format!("app-{number}");
    let pods: String = (0..PODS).map(|n| pod(&name(n), &[[10, 245, (n >> 8) as u8, n as u8].into()])).collect();
    pair.add("pods.yaml", &pods)?;
    let policies: Vec<String> = (0..PODS / 10).map(|n| policy(&name(n), &name(n))).collect();
    pair.add("policies.yaml", &policies.join("---\n"))?;
    let manifests = pair.manifests().to_string_lossy();
    let watched = Watched::start_in(pair.lab.node(), &["--manifests", &manifests], 0)?;
    // The idle time.
    std::thread::sleep(REST);
    let before = process::cpu(watched.pid())?;
    std::thread::sleep(REST);
    let idle = process::cpu(watched.pid())?.since(before);
    let (bytes, maps) = process::maps(watched.pid())?;
    println!("{:<52} {:>10.1}", "resident memory, 1,000 pods, MiB", mib(process::resident(watched.pid())?));
    println!("{:<52} {:>10.1}", format!("{maps} maps in the kernel, MiB"), mib(bytes));
    let share = (idle.user + idle.system).as_secs_f64() / REST.as_secs_f64() * 100.0;
    println!("{:<52} {share:>10.1}", "processor time at rest, % of a core");
    watched.stop()?;
    Ok(())
}
