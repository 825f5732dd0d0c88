//! `cargo xtask bench`: the figures, as tables.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cluster_programs::{API_SERVER, ETCD};
use crate::machine;
use crate::setup::{self, Need};

/// Measure and print tables.
///
/// Builds in release mode and runs the benches one after the other, since they would disturb each other. Figures
/// depend on the machine; nothing is asserted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these benches [default: all that this machine can run]
    names: Vec<String>,
    /// Name the benches and what they measure
    #[arg(long)]
    list: bool,
}

/// A bench is a program that prints its own table. To add one: a `[[bench]]` with `harness = false`, and a row here.
struct Bench {
    /// The cargo bench target.
    name: &'static str,
    package: &'static str,
    measures: &'static str,
    needs_root: bool,
}

const BENCHES: [Bench; 6] = [
    Bench {
        name: "verdict",
        package: "netpol-trace",
        measures: "index build, verdicts a second, cost by cluster size",
        needs_root: false,
    },
    Bench {
        name: "oracle",
        package: "netpol-trace",
        measures: "a million random queries to both evaluators: differences",
        needs_root: false,
    },
    Bench {
        name: "tail",
        package: "netpol-trace",
        measures: "tail on a log of a million records: filtering, summary, memory",
        needs_root: false,
    },
    Bench {
        name: "latency",
        package: "netpol-trace-tests",
        measures: "from a dropped packet to its written line; start to attached",
        needs_root: true,
    },
    Bench {
        name: "tc",
        package: "netpol-trace-tests",
        measures: "the tc hook's cost of a packet, next to an empty program",
        needs_root: true,
    },
    Bench {
        name: "api",
        package: "netpol-trace-tests",
        measures: "what agents cost a real API server, and a cluster's size an agent (some minutes)",
        needs_root: true,
    },
];

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        BENCHES.iter().for_each(|bench| println!("{:<10} {}", bench.name, bench.measures));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.names {
        if !BENCHES.iter().any(|bench| bench.name == name) {
            bail!("no bench `{name}`; cargo xtask bench --list names them");
        }
    }
    setup::ensure(&[Need::Build, Need::Lab])?;
    let mut failed = Vec::new();
    for bench in
        BENCHES.iter().filter(|bench| args.names.is_empty() || args.names.iter().any(|name| name == bench.name))
    {
        println!("\n== {}: {}", bench.name, bench.measures);
        if bench.needs_root && !machine::is_root() {
            println!("skipped: needs root");
            continue;
        }
        if bench.name == "api" {
            setup::ensure_programs(&[ETCD, API_SERVER])?;
        }
        let mut command = machine::cargo();
        command.args(["bench", "--quiet", "--locked", "--package", bench.package, "--bench", bench.name]);
        if let Err(error) = machine::run(&mut command) {
            println!("error: {error:#}");
            failed.push(bench.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
