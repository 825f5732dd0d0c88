//! Repeated packets are counted, not recorded one by one. Every packet is in the count of one record.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::{Agent, Run};
use netpol_trace_tests::pair::{CLIENT, CLIENT6, DENY, Pair, SERVER, SERVER6};
use netpol_trace_tests::record::{Record, drops, packets};
use netpol_trace_tests::{can_run_lab, require, traffic};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// More flows from one CPU than its own table (16,384 on a machine with one CPU) and the shared map (4,096) hold together. The keys
/// without source port, one per destination port, are fewer than the 2,048 beyond.
const MANY_SOURCES: usize = 28;
const FEW_PORTS: u16 = 1_500;
/// More flows than all of that, with 2,048 destination ports beyond.
const SCAN_PORTS: u16 = 40_000;

pub fn own<'a>(pair: &'a Pair, run: &'a Run) -> impl Iterator<Item = &'a Record> {
    drops(&run.records).filter(|record| pair.lab.owns(record))
}

pub fn flood(pair: &Pair, count: usize) -> Result<()> {
    let to = std::iter::repeat_n(SocketAddr::from((SERVER, 5000)), count);
    traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 100).map(drop)
}

/// Runs `work` on each CPU that this process may use: packets are dropped on the CPU that sends them.
fn on_each_cpu(what: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    for cpu in (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or_default()) {
        let on_one = || {
            let mut one = CpuSet::new();
            one.set(cpu)?;
            sched_setaffinity(this, &one)?;
            what()
        };
        thread::scope(|scope| scope.spawn(on_one).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))?;
    }
    Ok(())
}

/// The first packet is recorded at once, the others as one count per window.
#[test]
fn a_flood_is_a_few_records() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let agent =
        Agent::start(&["--aggregation-window", "5m", "--max-records-per-second", "0", "--manifests", &manifests])?;
    flood(&pair, 2000)?;
    agent.wait_for("the first packet's record", |records| drops(records).any(|r| pair.lab.owns(r)))?;
    let run = agent.stop()?;
    run.balance()?;
    let mine: Vec<&Record> = own(&pair, &run).collect();
    assert_eq!(packets(mine.iter().copied()), 2000, "{mine:?}");
    assert_eq!(mine.len(), 2, "the first one and the rest: {mine:?}");
    assert_eq!(mine.iter().map(|record| record.number("/bytes").unwrap_or_default()).sum::<u64>(), 2000 * 128);
    let rest = mine.last().context("a record")?;
    // Times are exact to the kernel's tick, and all packets may have come within one.
    assert!(rest.text("/last_time") >= rest.text("/time") && !rest.text("/last_time").is_empty(), "{rest}");
    Ok(())
}

/// Each CPU emits the first packet that it sees. The count has the others.
#[test]
fn a_flow_of_several_cpus_is_one() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let agent =
        Agent::start(&["--aggregation-window", "5m", "--max-records-per-second", "0", "--manifests", &manifests])?;
    let socket = pair.client()?.netns.run(|| UdpSocket::bind((CLIENT, 0)))?;
    let sent = AtomicU64::new(0);
    for _ in 0..3 {
        on_each_cpu(|| {
            socket.send_to(&[b'.'; 100], (SERVER, 5000))?;
            sent.fetch_add(1, Ordering::AcqRel);
            Ok(())
        })?;
    }
    agent.wait_for("the first packet's record", |records| drops(records).any(|r| pair.lab.owns(r)))?;
    let run = agent.stop()?;
    run.balance()?;
    let mine: Vec<&Record> = own(&pair, &run).collect();
    let counts: Vec<u64> = mine.iter().map(|record| record.count()).collect();
    let sent = sent.into_inner();
    assert_eq!(counts, [1, sent - 1], "{mine:?}");
    assert_eq!(mine.iter().map(|record| record.number("/bytes").unwrap_or_default()).sum::<u64>(), sent * 128);
    Ok(())
}

/// More flows than the maps have room for: the key is coarser and marked, and the count is exact.
#[test]
fn a_full_map_aggregates_coarser() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let options = ["--aggregation-window", "5m", "--ring-kib", "16384", "--max-records-per-second", "0", "--manifests"];
    let agent = Agent::start(&[&options[..], &[&manifests]].concat())?;
    let client = &pair.client()?.netns;
    on_each_cpu(|| {
        (0..MANY_SOURCES).try_for_each(|_| {
            let fill = (10_000..10_000 + FEW_PORTS).map(|port| SocketAddr::from((SERVER, port)));
            traffic::udp(client, CLIENT.into(), fill, 64).map(drop)
        })
    })?;
    for _ in 0..100 {
        // Each from a port of its own.
        traffic::udp(client, CLIENT6.into(), [(SERVER6, 53).into(), (SERVER6, 53).into()], 64)?;
    }
    let run = agent.stop()?;
    run.balance()?;
    assert_eq!(packets(own(&pair, &run)), pair.counted("denied")?);
    let coarse: Vec<&Record> = own(&pair, &run)
        .filter(|r| r.text("/aggregated_by/because") == "flow_map_full" && r.text("/network/family") == "ipv6")
        .collect();
    let [aggregate] = coarse.as_slice() else { panic!("one client, one port: {coarse:?}") };
    assert_eq!(aggregate.count(), 199, "all but the first one");
    assert_eq!(
        (aggregate.number("/source/port"), aggregate.number("/destination/port")),
        (None, Some(53)),
        "{aggregate}"
    );
    Ok(())
}

/// With no room for the coarser keys either, packets are counted by their two addresses.
#[test]
fn a_scan_is_aggregated_by_addresses() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let options = ["--aggregation-window", "5m", "--ring-kib", "16384", "--max-records-per-second", "0", "--manifests"];
    let agent = Agent::start(&[&options[..], &[&manifests]].concat())?;
    let scan = (10_000..10_000 + SCAN_PORTS).map(|port| SocketAddr::from((SERVER, port)));
    traffic::udp(&pair.client()?.netns, CLIENT.into(), scan, 64)?;
    let run = agent.stop()?;
    run.balance()?;
    // On a slow machine the agent may lose some of 22,000 first packets, which it declares.
    run.account_for("denied", pair.counted("denied")?, &pair.netfilter_drops(&run))?;
    let wide: Vec<&Record> = own(&pair, &run)
        .filter(|r| r.text("/aggregated_by/because") == "flow_map_full" && r.number("/destination/port").is_none())
        .collect();
    let [aggregate] = wide.as_slice() else { panic!("one client, one server: {wide:?}") };
    assert!(aggregate.count() > u64::from(SCAN_PORTS) - 23_000, "{aggregate}");
    assert_eq!(
        (aggregate.pod("source"), aggregate.pod("destination")),
        ("lab/client".into(), "lab/server".into()),
        "{aggregate}"
    );
    assert_eq!((aggregate.text("/cause"), aggregate.number("/source/port")), ("policy", None), "{aggregate}");
    Ok(())
}

/// Above the record budget drops are aggregated by workload, and every packet is in a count.
#[test]
fn a_spent_budget_aggregates_by_workloads() -> Result<()> {
    require!(can_run_lab());
    // Another test's scan would spend this agent's aggregates.
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let agent = Agent::start(&["--max-records-per-second", "1", "--manifests", &manifests])?;
    let from = IpAddr::from(CLIENT);
    for _ in 0..200 {
        traffic::udp(&pair.client()?.netns, from, [(SERVER, 80).into()], 64)?;
    }
    let run = agent.stop()?;
    run.balance()?;
    assert_eq!(packets(own(&pair, &run)), 200);
    let aggregated: Vec<&Record> =
        own(&pair, &run).filter(|r| r.text("/aggregated_by/because") == "record_budget").collect();
    assert!(packets(aggregated.iter().copied()) >= 100, "a budget of ten records: {aggregated:?}");
    for aggregate in &aggregated {
        assert_eq!(
            (aggregate.pod("source"), aggregate.pod("destination")),
            ("lab/client".into(), "lab/server".into()),
            "{aggregate}"
        );
        assert_eq!(
            (aggregate.number("/source/port"), aggregate.number("/destination/port")),
            (None, Some(80)),
            "{aggregate}"
        );
    }
    Ok(())
}
