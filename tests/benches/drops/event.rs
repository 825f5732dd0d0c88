//! Nanoseconds per event from the kernel's statistics: the sum over a watcher's programs, less the time of empty programs on the same
//! tracepoint in the same seconds. Empty programs differ by up to 4 ns, depending on their address in memory. So the median of several is
//! subtracted, half of which run before the watcher.

use anyhow::Result;
use netpol_trace_tests::bench::flood::{Flows, Sender};
use netpol_trace_tests::bench::median;
use netpol_trace_tests::bench::process;
use netpol_trace_tests::bench::statistics::{Spent, Statistics};
use netpol_trace_tests::bpf::LoadedProgram;
use netpol_trace_tests::eventually;
use netpol_trace_tests::pair::{CLIENT, Pair, SERVER};

use crate::peers::{self, Watcher};
use crate::{RULES, sender};

const ROUNDS: usize = 9;
const PACKETS: u64 = 100_000;
/// Programs that do nothing, on each side of the watcher.
const EMPTY: usize = 5;
/// Sockets for new flows, 64,000 per socket.
const SOCKETS: usize = 60;

struct Traffic {
    what: &'static str,
    flows: Flows,
    /// Packets of one round.
    packets: u64,
    /// True: to the server, where the rules drop; false: to a closed port of the client.
    dropped: bool,
}

/// Packets of one round: those of all rounds fit into the ring, which holds 5,140 events, and those of one window into the maps of flows.
const FEW: u64 = 500;

const TRAFFIC: [Traffic; 4] = [
    Traffic { what: "uninteresting: a closed port", flows: Flows::One(9), packets: PACKETS, dropped: false },
    Traffic { what: "repeated drop of a known flow", flows: Flows::One(5000), packets: PACKETS, dropped: true },
    Traffic { what: "first drop of a flow", flows: Flows::New, packets: FEW, dropped: true },
    Traffic { what: "new flows beyond the maps' room", flows: Flows::New, packets: PACKETS, dropped: true },
];

pub fn run() -> Result<()> {
    let pair = Pair::start(RULES)?;
    let mut to_server = sender(&pair, SOCKETS)?;
    let mut to_client = Sender::new(&pair.server()?.netns, SERVER, CLIENT, 1, 18)?;
    let _statistics = Statistics::on()?;
    let empty = || (0..EMPTY).map(|_| LoadedProgram::empty_at("kfree_skb")).collect::<Result<Vec<_>>>();
    let in_front = empty()?;
    println!(
        "ns an event above an empty program on kfree_skb (BPF statistics): median of {ROUNDS} rounds, least and most; `empty` is \
         the median of {} programs, half of them in front",
        2 * EMPTY
    );
    println!("{:<34} {:<32} {:>7} {:>7} {:>7} {:>7}", "", "", "median", "least", "most", "empty");
    for start in peers::PROGRAMS {
        let watcher = match start(&pair)? {
            Ok(watcher) => watcher,
            Err((name, why)) => {
                println!("{name:<34} not measured: {why}");
                continue;
            }
        };
        if let Err(error) = ready(&watcher, &mut to_server) {
            println!("{:<34} not measured: {error}", watcher.name);
            watcher.stop()?;
            continue;
        }
        let behind = empty()?;
        let empty = || {
            let all = in_front.iter().chain(&behind);
            all.map(|(program, _)| program.spent()).collect::<Result<Vec<Spent>>>()
        };
        for traffic in &TRAFFIC {
            let sender = if traffic.dropped { &mut to_server } else { &mut to_client };
            let (mut above, mut base) = (Vec::new(), Vec::new());
            let first = process::spent(watcher.pid(), &[])?.runs;
            for _ in 0..ROUNDS {
                let before = (process::spent(watcher.pid(), &[])?, empty()?);
                sender.send(traffic.flows, traffic.packets, None)?;
                let nothing: Vec<Spent> = empty()?.into_iter().zip(before.1).map(|(now, then)| now - then).collect();
                // Per event, not per run: of several programs not every one runs for each event.
                let events = nothing.first().map_or(1, |spent| spent.runs.max(1));
                let ours = (process::spent(watcher.pid(), &[])? - before.0).ns as f64 / events as f64;
                let nothing = median(nothing.into_iter().map(Spent::each).collect());
                above.push(ours - nothing);
                base.push(nothing);
            }
            if process::spent(watcher.pid(), &[])?.runs <= first {
                println!("{:<34} {:<32} not measured: its programs did not run", watcher.name, traffic.what);
                continue;
            }
            let least = above.iter().copied().fold(f64::INFINITY, f64::min);
            let most = above.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            println!(
                "{:<34} {:<32} {:>7.0} {least:>7.0} {most:>7.0} {:>7.0}",
                watcher.name,
                traffic.what,
                median(above),
                median(base)
            );
        }
        watcher.stop()?;
    }
    Ok(())
}

/// Waits until its programs run.
fn ready(watcher: &Watcher, sender: &mut Sender) -> Result<()> {
    let before = process::spent(watcher.pid(), &[])?.runs;
    eventually(&format!("{}'s programs run", watcher.name), || {
        sender.send(Flows::One(5000), 64, None)?;
        Ok((process::spent(watcher.pid(), &[])?.runs > before).then_some(()))
    })
}
