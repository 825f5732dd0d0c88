//! Many changes at once: memory stays bounded, drops are recorded, and every packet is accounted for.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::{cluster, require};

use super::{ApiLab, in_sync, pod, source};

const PODS: u32 = 500;
/// Each is two requests, spec and status, and so two events.
const APPLIES: u32 = 5_000;
const WRITERS: u32 = 8;

fn resident_kib(agent: &Agent) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// 10,000 changes of pods as fast as the server accepts them, with drops in between.
#[test]
fn ten_thousand_changes_of_pods() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    let change = |n: u32| -> Result<()> {
        let ip = IpAddr::from([10, 245, u8::try_from(n % 200)?, u8::try_from(n / 200 % 250)?]);
        let mut object = pod(&format!("pod-{}", n % PODS), "node-b", &[ip]);
        object["metadata"]["labels"]["round"] = n.to_string().into();
        api_lab.apply(&object).map(drop)
    };
    (0..PODS).try_for_each(change)?;
    let agent = api_lab.agent(&["--peers", "watch"])?;
    let (start, before) = (Instant::now(), resident_kib(&agent)?);
    let sent = std::thread::scope(|scope| -> Result<u32> {
        let write = |writer: u32| (PODS..PODS + APPLIES).filter(move |n| n % WRITERS == writer).try_for_each(change);
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        let mut sent = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            let record = api_lab.send(&agent)?;
            assert_eq!(record.pod("destination"), "lab/server", "{record}");
            sent += 1;
        }
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer panicked"))?;
        Ok(sent)
    })?;
    let after = resident_kib(&agent)?;
    let changes = 2 * APPLIES;
    println!("{changes} changes in {:.0?}, {sent} drops sent; RSS {before} -> {after} KiB", start.elapsed());
    assert!(after < before + 32 * 1024, "RSS {before} -> {after} KiB");
    let run = agent.stop()?;
    run.balance()?;
    assert!(in_sync(&run.records), "{:?}", run.stopped()?);
    let pods = source(&run.records, "pods").unwrap_or_default();
    assert_eq!(pods["objects"]["Pod"], PODS + 2, "{pods}");
    Ok(())
}
