//! The cost of watching drops: the agent compared with an empty program, bpftrace, bcc's tcpdrop and nftables' own log, on the same drops in
//! the same run. Arguments name the parts to run; without arguments all run.

mod cost;
mod event;
mod flood;
mod healthy;
mod peers;
mod recursion;
mod rest;

use anyhow::{Result, bail};
use netpol_trace_tests::bench::flood::Sender;
use netpol_trace_tests::pair::{CLIENT, Pair, SERVER};
use netpol_trace_tests::{can_run_lab, require};

/// Drops packets to the server. Without conntrack, so that new flows cost the enforcer no more than known ones.
pub const RULES: &str = "
table inet network-policy {
	counter denied { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip daddr 10.244.1.3 counter name denied drop
	}
}";

type Part = (&'static str, fn() -> Result<()>);

const PARTS: [Part; 6] = [
    ("event", event::run),
    ("cost", cost::run),
    ("flood", flood::run),
    ("recursion", recursion::run),
    ("healthy", healthy::run),
    ("rest", rest::run),
];

fn main() -> Result<()> {
    require!(can_run_lab());
    // Cargo passes --bench.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Some(unknown) = wanted.iter().find(|name| !PARTS.iter().any(|(part, _)| part == name)) {
        bail!("no part `{unknown}`; there are {}", PARTS.map(|(part, _)| part).join(", "));
    }
    for (name, run) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|part| part == name) {
            println!("\n-- cargo xtask bench drops -- {name}");
            run()?;
        }
    }
    Ok(())
}

/// A sender to the server, where the rules drop, with this many sockets.
pub fn sender(pair: &Pair, sockets: usize) -> Result<Sender> {
    Sender::new(&pair.client()?.netns, CLIENT, SERVER, sockets, 18)
}
