//! BPF's recursion protection: the kernel does not run a program on a CPU where it is running already, so drops in a softirq that
//! interrupts the program are missed. With drops in softirq alone none are missed. Drops of the node's own packets (OUTPUT) that are
//! interrupted by drops of forwarded ones (FORWARD) cause some misses.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use netpol_trace_tests::bench::flood::{Flows, Sender};
use netpol_trace_tests::bench::process;
use netpol_trace_tests::eventually;
use netpol_trace_tests::pair::{CLIENT, NODE, Pair};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::flood::watch;
use crate::sender;

/// Packets of the forwarded flood, which takes some seconds.
const PACKETS: u64 = 5_000_000;
/// Drops a second in process context.
const OUTPUT_RATE: u64 = 2_000;

const RULES: &str = "
table inet network-policy {
	counter denied { }
	counter refused { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip daddr 10.244.1.3 counter name denied drop
	}
	chain output {
		type filter hook output priority filter; policy accept;
		udp dport 7 counter name refused drop
	}
}";

pub fn run() -> Result<()> {
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>11} {:>9} {:>11}",
        "", "nft", "records", "declared", "runs missed", "percent", "unaccounted"
    );
    case("softirq only (FORWARD)", None)?;
    case("OUTPUT at 2,000 a second under FORWARD", Some(OUTPUT_RATE))?;
    case("OUTPUT at full rate under FORWARD", Some(u64::MAX))
}

fn case(what: &str, output_rate: Option<u64>) -> Result<()> {
    let pair = Pair::start(RULES)?;
    // Receive packet steering: FORWARD's drops are in softirq on the first CPU, whichever CPU the client sends from.
    let device = &pair.client()?.device;
    let script = format!("mount -t sysfs sysfs /sys && echo 1 > /sys/class/net/{device}/queues/rx-0/rps_cpus");
    pair.lab.node().command("unshare", &["--mount", "sh", "-c", &script], "").context("steer packets to a CPU")?;
    let agent = watch(&pair)?;
    let before = process::spent(agent.pid(), &[])?.missed;
    let mut forward = sender(&pair, 1)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let output = output_rate.map(|rate| {
            let done = &done;
            let pair = &pair;
            scope.spawn(move || -> Result<()> {
                let mut first = CpuSet::new();
                first.set(0)?;
                sched_setaffinity(Pid::from_raw(0), &first)?;
                let mut sender = Sender::new(pair.lab.node(), NODE, CLIENT, 1, 18)?;
                let rate = (rate != u64::MAX).then_some(rate);
                while !done.load(Ordering::Acquire) {
                    sender.send(Flows::One(7), 640, rate)?;
                }
                Ok(())
            })
        });
        let sent = forward.send(Flows::One(5000), PACKETS, None);
        done.store(true, Ordering::Release);
        if let Some(output) = output {
            output.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        }
        sent.map(drop)
    })?;
    // Packets that the first CPU's backlog has no room for are dropped too.
    eventually("every packet to be dropped", || Ok((pair.counted("denied")? >= PACKETS).then_some(())))?;
    let missed = process::spent(agent.pid(), &[])?.missed - before;
    let (lines, _) = agent.stop()?;
    // OUTPUT's drops have the cause `host_firewall` and no records by default.
    let counted = pair.counted("denied")?;
    println!(
        "{what:<44} {counted:>9} {:>9} {:>9} {missed:>11} {:>9.3} {:>11}",
        lines.packets,
        lines.declared(),
        lines.declared() as f64 / counted as f64 * 100.0,
        counted as i64 - (lines.packets + lines.declared()) as i64
    );
    Ok(())
}
