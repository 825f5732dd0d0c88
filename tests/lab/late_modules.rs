//! netfilter's modules are loaded after the agent has started: their first drops are recorded.
//!
//! A loaded module stays loaded, so this test needs a freshly booted kernel: `cargo xtask vm` boots one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::pair::SERVER;
use netpol_trace_tests::record::{Record, packets};
use netpol_trace_tests::row::{DATAGRAMS, PORT, Row, datagrams};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{eventually, iptables, require, test_name};

use crate::rows::queues;

const QUEUE: u16 = 7;

fn loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

fn modprobe(module: &str) -> Result<()> {
    let output = Command::new("modprobe").arg(module).output().context("run modprobe")?;
    ensure!(output.status.success(), "modprobe {module}: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(loaded(module), "{module} is loaded, but not there");
    Ok(())
}

/// Requires a kernel with netfilter as modules, none of which is loaded yet.
fn can_load_late() -> Result<()> {
    if let Some(module) = ["nf_tables", "nfnetlink_queue", "ip_tables"].into_iter().find(|module| loaded(module)) {
        return Err(missing(format!("{module} is loaded here already: cargo xtask vm runs this on a fresh kernel")));
    }
    let known = Command::new("modprobe").args(["--dry-run", "nf_tables"]).output();
    if !known.is_ok_and(|output| output.status.success()) || builtin("nf_tables")? {
        return Err(missing("this kernel has no module nf_tables, or has it built in"));
    }
    Ok(())
}

#[test]
fn late_modules() -> Result<()> {
    require!(can_load_late());
    let mut row = require!(Row::new(test_name!()));
    row.watch()?;

    modprobe("nf_tables")?;
    row.pair.lab.enforce(
        "table inet t {\nchain c {\ntype filter hook forward priority 0;\nudp dport 9 counter drop comment \"row\"\n}\n}\n",
    )?;
    all_named(&mut row, PORT, || Ok(()), &["nft_do_chain", "nf_hook_slow"])?;

    iptables::load(row.pair.lab.node(), "legacy", "-A FORWARD -p udp --dport 10 -j DROP")?;
    all_named(&mut row, 10, || Ok(()), &["nf_hook_slow"])?;

    iptables::load(row.pair.lab.node(), "legacy", "-A FORWARD -p udp --dport 11 -j NFQUEUE --queue-num 7")?;
    // The listener's first message loads the module, and its verdicts follow at once.
    let mut queue = queues::listen(&row, QUEUE)?;
    ensure!(loaded("nfnetlink_queue"), "a listener, and no module nfnetlink_queue");
    all_named(&mut row, 11, || queues::drop_all(&mut queue, DATAGRAMS), &["nfqnl_reinject", "nf_reinject"])
}

fn builtin(module: &str) -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let list = std::fs::read_to_string(format!("/lib/modules/{}/modules.builtin", release.trim())).unwrap_or_default();
    Ok(list.lines().any(|line| line.ends_with(&format!("/{module}.ko"))))
}

/// Sends [`DATAGRAMS`]: each has a record with the cause `policy` and one of these locations.
fn all_named(row: &mut Row, port: u16, enforce: impl FnOnce() -> Result<()>, locations: &[&str]) -> Result<()> {
    let client = row.pair.client()?;
    let source = datagrams(&client.netns, client.ip_like(SERVER.into()), (SERVER, port).into())?;
    row.note(source, (SERVER, port).into());
    enforce()?;
    let ours = |record: &Record| record.address("destination").is_some_and(|to| to.port() == port);
    let found = eventually("a record of each packet", || {
        let records: Vec<Record> = row.records()?.into_iter().filter(ours).collect();
        Ok((packets(&records) >= DATAGRAMS).then_some(records))
    });
    let records = found.with_context(|| format!("port {port}: {:?}", row.records()))?;
    let named = |record: &&Record| record.cause() == "policy" && locations.contains(&record.text("/kernel/location"));
    let count = packets(records.iter().filter(named));
    ensure!(count == DATAGRAMS, "port {port}: {count} of {DATAGRAMS} are named rightly: {records:?}");
    Ok(())
}
