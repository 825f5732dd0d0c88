//! Floods: one flow at full rate, and 100,000 new flows a second for half a minute. Measures the agent's processor time and memory, and checks
//! that every packet that nft counted is in a record or a declared loss.

use std::time::Duration;

use anyhow::{Result, ensure};
use netpol_trace_tests::bench::flood::{Flows, Round, Sender};
use netpol_trace_tests::bench::process::{self, Cpu};
use netpol_trace_tests::bench::watched::{Lines, Watched};
use netpol_trace_tests::pair::Pair;

use crate::{RULES, sender};

const SECONDS: u64 = 10;
/// The highest rate of one sender. The flood ends after a number of packets, not after a time.
const ONE_FLOW: u64 = 300_000 * SECONDS;
const NEW_FLOWS_A_SECOND: u64 = 100_000;
const NEW_FLOWS: u64 = NEW_FLOWS_A_SECOND * 30;
const SOCKETS: usize = 47;

pub fn run() -> Result<()> {
    println!(
        "{:<34} {:>9} {:>7} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>11}",
        "", "packets", "a sec", "user %", "system %", "RSS MiB", "records", "in them", "declared", "unaccounted"
    );
    flood("one flow, full rate", Flows::One(5000), ONE_FLOW, None)?;
    flood("100,000 new flows a second, 30 s", Flows::New, NEW_FLOWS, Some(NEW_FLOWS_A_SECOND))
}

fn flood(what: &str, flows: Flows, packets: u64, rate: Option<u64>) -> Result<()> {
    let pair = Pair::start(RULES)?;
    let mut sender = sender(&pair, SOCKETS)?;
    let agent = watch(&pair)?;
    let before = process::cpu(agent.pid())?;
    let Watch { round, peak } = send_watched(&mut sender, flows, packets, rate, agent.pid())?;
    let spent = process::cpu(agent.pid())?.since(before);
    let (lines, exit) = agent.stop()?;
    ensure!(exit.success(), "the agent ended with {exit}");
    row(what, &round, spent, peak, &lines, pair.counted("denied")?);
    Ok(())
}

/// Starts the agent with this pair's manifests and the hook kfree_skb only.
pub fn watch(pair: &Pair) -> Result<Watched> {
    let manifests = pair.manifests().to_string_lossy();
    Watched::start(&["--manifests", &manifests, "--hooks", "kfree_skb"], pair.lab.node().inode())
}

pub struct Watch {
    pub round: Round,
    /// The highest resident memory seen, in bytes.
    pub peak: u64,
}

/// Sends while a thread samples a process's memory.
pub fn send_watched(sender: &mut Sender, flows: Flows, packets: u64, rate: Option<u64>, pid: u32) -> Result<Watch> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| sender.send(flows, packets, rate));
        let mut peak = process::resident(pid)?;
        while !sending.is_finished() {
            // The sampling interval.
            std::thread::sleep(Duration::from_millis(100));
            peak = peak.max(process::resident(pid)?);
        }
        let round = sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        Ok(Watch { round, peak })
    })
}

fn row(what: &str, round: &Round, spent: Cpu, peak: u64, lines: &Lines, counted: u64) {
    let seconds = round.took.as_secs_f64();
    let declared = lines.declared();
    println!(
        "{what:<34} {counted:>9} {:>7.0} {:>8.1} {:>8.1} {:>8.1} {:>9} {:>9} {declared:>9} {:>11}",
        counted as f64 / seconds,
        spent.user.as_secs_f64() / seconds * 100.0,
        spent.system.as_secs_f64() / seconds * 100.0,
        peak as f64 / f64::from(1 << 20),
        lines.records,
        lines.packets,
        // Losses are of the whole host: a negative number is due to other losses.
        counted as i64 - (lines.packets + declared) as i64
    );
}
