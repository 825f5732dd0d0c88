//! Programs on netkit devices (from Linux 6.7). They run between the two ends of the pair, and their drops have no reason: the call site
//! shows them.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::pair::{CLIENT, SERVER};
use netpol_trace_tests::program::{CountingProgram, Kind};
use netpol_trace_tests::row::{Expect, PORT, Row, policy};
use netpol_trace_tests::{require, test_name, traffic};

/// The record has the ingress hook of the end that would have received the packet.
const EXPECT: Expect = Expect { reason: "NOT_SPECIFIED", ..policy("tc", "ingress", "drop") };

/// Drops UDP to [`PORT`]: what the client sends, or what the server is sent.
fn attach(row: &Row, from_pod: bool) -> Result<(CountingProgram, OwnedFd)> {
    let program = CountingProgram::load(Kind::Tc, PORT)?;
    let device = if from_pod { &row.pair.client()?.device } else { &row.pair.server()?.device };
    let link = row.pair.lab.node().run(|| {
        let index = nix::net::if_::if_nametoindex(device.as_str()).context("the device's index")?;
        program.attach_netkit(index, from_pod)
    })?;
    Ok((program, link))
}

fn dropped(test: &'static str, from_pod: bool) -> Result<()> {
    let mut row = Row::with_netkit(test)?;
    let (program, _link) = attach(&row, from_pod)?;
    row.watch()?;
    row.to_server()?;
    let counted = program.counted()?;
    ensure!(counted > 0, "the program dropped nothing");
    // Doctor finds the program and warns that the kernel gives no reason for its drops.
    let findings = row.doctor("coverage")?;
    let found = |text: &str| findings.iter().find(|f| f["found"].as_str().is_some_and(|found| found.contains(text)));
    ensure!(found("netkit devices: 2").is_some_and(|finding| finding["status"] == "warn"), "{findings:?}");
    let device = if from_pod { "netkit0" } else { "netkit1" };
    // The agent's own tc hook is there too.
    ensure!(found(&format!("{device} (lab_drop")).is_some(), "{findings:?}");
    row.check(EXPECT, counted).map(drop)
}

#[test]
fn netkit_from_a_pod() -> Result<()> {
    require!(dropped(test_name!(), true));
    Ok(())
}

#[test]
fn netkit_to_a_pod() -> Result<()> {
    require!(dropped(test_name!(), false));
    Ok(())
}

/// The tc hook is on the node's end: it sees only the pod's packets that the netkit program has passed.
#[test]
fn netkit_beside_the_tc_hook() -> Result<()> {
    let mut row = require!(Row::with_netkit(test_name!()));
    let (program, _link) = attach(&row, true)?;
    row.watch_with(&["--all-drops", "--hooks", "kfree_skb,tc"])?;
    ensure!(row.hook_detail("tc")?.starts_with("2 pod interfaces"), "{}", row.hook_detail("tc")?);
    traffic::udp(&row.pair.client()?.netns, CLIENT.into(), [(SERVER, 10).into()], 32)?;
    row.to_server()?;
    let counted = program.counted()?;
    let (_, run) = row.finish(EXPECT, counted)?;
    let stopped = run.stopped()?;
    // The one datagram to the other port, at the client's interface and at the server's.
    ensure!(stopped.number("/connections/opened") == Some(2), "{stopped}");
    Ok(())
}
