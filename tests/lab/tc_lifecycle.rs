//! Pods come and go, agents are killed: nothing is left behind.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::netns::Netns;
use netpol_trace_tests::pair::{DENY, Pair};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{bpf, can_run_lab, eventually, require};
use nix::sys::signal::Signal;

/// Pods that come and go at once, and how often: 1,000 in all.
const PODS: usize = 50;
const ROUNDS: usize = 20;

/// Each pod's interface gets both programs, which go with it: no link, map or descriptor stays.
#[test]
fn pods_come_and_go() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let agent = pair.watch_node(&["--hooks", "tc"])?;
    let before = holdings(&agent)?;
    let pods = Netns::new("pods")?;
    for round in 0..ROUNDS {
        let (mut add, mut remove) = (String::new(), String::new());
        for i in 0..PODS {
            writeln!(add, "link add pod{i} type veth peer name eth{i} netns {}", pods.path())?;
            writeln!(add, "link set pod{i} up")?;
            // Either end of a pair may be removed first: with the pod's namespace, or by the CNI.
            writeln!(remove, "link del pod{i}")?;
        }
        pair.lab.node().ip(&add)?;
        let full = eventually("both programs are on every interface", || {
            let now = holdings(&agent)?;
            let expected = 2 * (PODS + 2);
            Ok((programs_on(&pair, &now)? == expected).then_some(now))
        })?;
        assert!(full.maps == before.maps, "round {round}: maps grew from {before:?} to {full:?}");
        pair.lab.node().ip(&remove)?;
        eventually("everything is as before", || Ok((holdings(&agent)? == before).then_some(())))
            .with_context(|| format!("round {round}: before {before:?}, now {:?}", holdings(&agent)))?;
    }
    let run = agent.stop()?;
    run.balance()?;
    assert!(!run.stderr.contains("WARN") && !run.stderr.contains("ERROR"), "{}", run.stderr);
    Ok(())
}

/// The descriptors that an agent holds.
#[derive(Debug, PartialEq)]
struct Holdings {
    descriptors: usize,
    links: usize,
    maps: usize,
}

fn holdings(agent: &Agent) -> Result<Holdings> {
    let folder = format!("/proc/{}/fdinfo", agent.pid());
    let (mut descriptors, mut links, mut maps) = (0, 0, 0);
    for entry in std::fs::read_dir(folder)? {
        descriptors += 1;
        // A descriptor may have been closed meanwhile.
        let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        links += usize::from(info.contains("link_id:"));
        maps += usize::from(info.contains("map_id:"));
    }
    Ok(Holdings { descriptors, links, maps })
}

/// Our links (before TCX: filters) in the node's namespace.
fn programs_on(pair: &Pair, holdings: &Holdings) -> Result<usize> {
    if holdings.links > 0 {
        return Ok(holdings.links);
    }
    // One call lists all of the hundreds of interfaces.
    let shown = pair.lab.node().command("bpftool", &["net", "show"], "")?;
    Ok(String::from_utf8_lossy(&shown.stdout).lines().filter(|line| line.contains("netpol_")).count())
}

/// After SIGKILL links end with the process. Filters stay and do nothing, and the next start removes them.
#[test]
fn a_killed_agent_leaves_nothing_that_acts() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let devices = [pair.client()?.device.clone(), pair.server()?.device.clone()];
    let shown = |what: &str| -> Result<String> {
        let mut text = String::new();
        for device in &devices {
            for arguments in
                [["filter", "show", "dev", device, "ingress"].as_slice(), &["qdisc", "show", "dev", device]]
            {
                text += &String::from_utf8_lossy(&pair.lab.node().command("tc", arguments, "")?.stdout);
            }
        }
        anyhow::ensure!(!text.is_empty(), "tc shows nothing {what}");
        Ok(text)
    };
    let agent = pair.watch_node(&["--hooks", "tc"])?;
    let objects = bpf::objects(agent.pid())?;
    let links = objects.iter().filter(|(kind, _)| *kind == "link").count();
    agent.signal(Signal::SIGKILL)?;
    agent.finish()?;
    if links > 0 {
        assert_eq!(links, 4, "{objects:?}");
        eventually("the agent's programs and links are gone", || {
            Ok(objects.iter().all(|(kind, id)| !bpf::exists(kind, id)).then_some(()))
        })?;
    } else {
        let left = shown("after the kill")?;
        assert!(left.contains("netpol_from_pod") && left.contains("clsact"), "{left}");
    }
    let run = pair.watch_node(&["--hooks", "tc", "--duration", "1s"])?.finish()?;
    run.balance()?;
    let left = shown("at the end")?;
    assert!(!left.contains("netpol") && !left.contains("clsact"), "{left}");
    Ok(())
}

/// The agent removes a clsact qdisc that it added, and keeps one that was there before.
#[test]
fn a_qdisc_that_was_there_stays() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let device = &pair.client()?.device;
    let added = pair.lab.node().command("tc", &["qdisc", "add", "dev", device, "clsact"], "");
    require!(added.map_err(|error| missing(format!("no clsact here: {error:#}"))));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let agent = pair.watch_node(&["--hooks", "tc"])?;
        agent.signal(signal)?;
        agent.finish()?;
    }
    pair.watch_node(&["--hooks", "tc", "--duration", "1s"])?.finish()?;
    let qdiscs = pair.lab.node().command("tc", &["qdisc", "show"], "")?;
    let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
    let clsact: BTreeSet<&str> = qdiscs.lines().filter(|line| line.contains("clsact")).collect();
    assert_eq!(clsact.len(), 1, "{qdiscs}");
    assert!(clsact.iter().all(|line| line.contains(device.as_str())), "{qdiscs}");
    Ok(())
}
