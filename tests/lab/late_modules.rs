//! netfilter's modules are loaded after the agent has started: their drops are named all the same.
//!
//! Once loaded a module stays for the machine's life, so this runs first in a fresh one: `cargo xtask vm` does that.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::iptables;
use netpol_trace_tests::pair::SERVER;
use netpol_trace_tests::row::{PORT, Row, datagrams};
use netpol_trace_tests::{eventually, skipped};
use nfq::{Queue, Verdict};

const NAME: &str = "late_modules";
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

#[test]
fn late_modules() -> Result<()> {
    if let Some(module) = ["nf_tables", "nfnetlink_queue", "ip_tables"].into_iter().find(|module| loaded(module)) {
        skipped(NAME, &format!("{module} is loaded here already: cargo xtask vm runs this on a fresh kernel"));
        return Ok(());
    }
    let known = Command::new("modprobe").args(["--dry-run", "nf_tables"]).output();
    if !known.is_ok_and(|output| output.status.success()) || builtin("nf_tables")? {
        skipped(NAME, "this kernel has no module nf_tables, or has it built in");
        return Ok(());
    }
    let Some(mut row) = Row::new(NAME)? else { return Ok(()) };
    row.watch()?;

    modprobe("nf_tables")?;
    row.pair.lab.enforce(
        "table inet t {\nchain c {\ntype filter hook forward priority 0;\nudp dport 9 counter drop comment \"row\"\n}\n}\n",
    )?;
    expect(&mut row, PORT, |_| Ok(()), "policy", &["nft_do_chain", "nf_hook_slow"])?;

    modprobe("nfnetlink_queue")?;
    let rule = "-A FORWARD -p udp --dport 11 -j NFQUEUE --queue-num 7";
    for line in ["-A FORWARD -p udp --dport 10 -j DROP", rule] {
        iptables::load(row.pair.lab.node(), "legacy", line)?;
    }
    expect(&mut row, 10, |_| Ok(()), "policy", &["nf_hook_slow"])?;

    let mut queue = row.pair.lab.node().run(|| -> std::io::Result<Queue> {
        let mut queue = Queue::open()?;
        queue.bind(QUEUE)?;
        queue.set_nonblocking(true);
        Ok(queue)
    })?;
    let drop_all = |_: &mut Row| {
        while let Ok(mut message) = queue.recv() {
            message.set_verdict(Verdict::Drop);
            queue.verdict(message)?;
        }
        Ok(())
    };
    expect(&mut row, 11, drop_all, "policy", &["nfqnl_reinject", "nf_reinject"])
}

fn builtin(module: &str) -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let list = std::fs::read_to_string(format!("/lib/modules/{}/modules.builtin", release.trim())).unwrap_or_default();
    Ok(list.lines().any(|line| line.ends_with(&format!("/{module}.ko"))))
}

/// Sends until a record of the packets names this cause and one of these locations.
fn expect(
    row: &mut Row,
    port: u16,
    mut enforce: impl FnMut(&mut Row) -> Result<()>,
    cause: &str,
    locations: &[&str],
) -> Result<()> {
    let client = row.pair.client()?.ip_like(SERVER.into());
    let named = eventually("a record with its location", || {
        let source = datagrams(&row.pair.client()?.netns, client, (SERVER, port).into())?;
        row.note(source, (SERVER, port).into());
        enforce(row)?;
        let records = row.records()?;
        Ok(records.into_iter().find(|record| {
            record.cause() == cause
                && record.address("destination").is_some_and(|to| to.port() == port)
                && locations.contains(&record.text("/kernel/location"))
        }))
    });
    named.with_context(|| format!("port {port}: {:?}", row.records())).map(drop)
}
