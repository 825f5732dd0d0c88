//! The total cost of one dropped packet: the sender's time above nft alone, and the reader's. This includes nftables' own `log`, which is not
//! a BPF program. BPF statistics are off, since they cost time themselves.

use std::time::Duration;

use anyhow::Result;
use netpol_trace_tests::bench::flood::{Flows, Sender};
use netpol_trace_tests::bench::median;
use netpol_trace_tests::bench::process::{self, Cpu};
use netpol_trace_tests::pair::Pair;

use crate::peers::{self, Reported, Start};
use crate::{RULES, sender};

const ROUNDS: usize = 5;
const PACKETS: u64 = 300_000;

const WATCHERS: [(Start, &str); 5] = [
    (peers::agent, "drop"),
    (peers::bpftrace_counts, "drop"),
    (peers::bpftrace_prints, "drop"),
    (peers::tcpdrop, "drop"),
    // This rule logs the packets that it drops.
    (peers::ulogd, "log group 5 drop"),
];

pub fn run() -> Result<()> {
    println!(
        "Drops of one flow at full rate, ns a packet: median of {ROUNDS} rounds of {PACKETS}, with as many of nft alone around them"
    );
    println!(
        "{:<34} {:>9} {:>9} {:>12} {:>14} {:>9} {:>9} {:>9}",
        "", "nft alone", "above it", "reader, user", "reader, system", "dropped", "reported", "declared"
    );
    for (start, verdict) in WATCHERS {
        let pair = Pair::start(RULES)?;
        let mut sender = sender(&pair, 1)?;
        let mut alone = rounds(&mut sender)?;
        pair.lab.enforce(&format!("flush ruleset\n{}", RULES.replace("denied drop", &format!("denied {verdict}"))))?;
        let watcher = match start(&pair)? {
            Ok(watcher) => watcher,
            Err((name, why)) => {
                println!("{name:<34} not measured: {why}");
                continue;
            }
        };
        let idle = process::cpu(watcher.pid())?;
        let watched = rounds(&mut sender)?;
        let spent = caught_up(watcher.pid())?.since(idle);
        let dropped = pair.counted("denied")?;
        let name = watcher.name;
        let Reported { packets, declared } = watcher.stop()?;
        pair.lab.enforce(&format!("flush ruleset\n{RULES}"))?;
        alone.extend(rounds(&mut sender)?);
        let (alone, watched) = (median(alone), median(watched));
        let each = |time: Duration| time.as_nanos() as f64 / dropped as f64;
        let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
        println!(
            "{name:<34} {alone:>9.0} {:>9.0} {:>12.0} {:>14.0} {dropped:>9} {:>9} {:>9}",
            watched - alone,
            each(spent.user),
            each(spent.system),
            number(packets),
            number(declared)
        );
    }
    Ok(())
}

/// Nanoseconds per packet of wall-clock time: not every kernel charges softirq time to a process.
fn rounds(sender: &mut Sender) -> Result<Vec<f64>> {
    let mut each = Vec::new();
    for _ in 0..ROUNDS {
        let round = sender.send(Flows::One(5000), PACKETS, None)?;
        each.push(round.took.as_nanos() as f64 / round.sent as f64);
    }
    Ok(each)
}

/// A reader's processor time once it has caught up and no longer grows.
fn caught_up(pid: u32) -> Result<Cpu> {
    let mut last = process::cpu(pid)?;
    loop {
        // Longer than a reader's poll interval.
        std::thread::sleep(Duration::from_millis(500));
        let now = process::cpu(pid)?;
        if now.since(last).user + now.since(last).system <= Duration::from_millis(20) {
            return Ok(now);
        }
        last = now;
    }
}
