//! `cargo xtask bench`: runs the benches and prints their tables.

mod page;

use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::cluster_programs::{API_SERVER, ETCD};
use crate::setup::{self, Need};
use crate::{image, machine};

/// Measure and print tables.
///
/// The agent is the release, as the image has it. Benches run one after the other, since they would disturb each other.
/// Figures depend on the machine. No bench fails on a figure, except the soak.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these benches. `all` runs every bench that this machine can run and writes docs/benchmarks.md [default: every bench,
    /// without the page]
    names: Vec<String>,
    /// Name the benches and what they measure
    #[arg(long)]
    list: bool,
    /// How long the soak takes
    #[arg(long, value_name = "N", default_value_t = 20)]
    minutes: u64,
    /// Arguments for the bench itself, such as the parts of `drops`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// A bench is a program that prints its own table. To add one: a `[[bench]]` with `harness = false`, and a row here.
struct Bench {
    /// The cargo bench target.
    name: &'static str,
    measures: &'static str,
    /// It runs the agent, which needs root.
    runs_agent: bool,
    /// Runs only when it is named.
    on_request: bool,
}

const BENCHES: [Bench; 9] = [
    Bench {
        name: "verdict",
        measures: "index build, verdicts a second, cost by cluster size",
        runs_agent: false,
        on_request: false,
    },
    Bench {
        name: "oracle",
        measures: "a million random queries to both evaluators: differences",
        runs_agent: false,
        on_request: false,
    },
    Bench {
        name: "tail",
        measures: "tail on a log of a million records: filtering, summary, memory",
        runs_agent: false,
        on_request: false,
    },
    Bench {
        name: "records",
        measures: "processor time and allocations from the kernel's event to the written line",
        runs_agent: false,
        on_request: false,
    },
    Bench {
        name: "drops",
        measures: "the cost of watching drops, compared with bpftrace, bcc and nftables' log (some minutes)",
        runs_agent: true,
        on_request: false,
    },
    Bench {
        name: "latency",
        measures: "from a dropped packet to its written line; start to attached",
        runs_agent: true,
        on_request: false,
    },
    Bench {
        name: "tc",
        measures: "the tc hook's cost per packet, compared with an empty program",
        runs_agent: true,
        on_request: false,
    },
    Bench {
        name: "api",
        measures: "the load of agents on a real API server, and an agent's memory by cluster size (some minutes)",
        runs_agent: true,
        on_request: false,
    },
    Bench {
        name: "soak",
        measures: "--minutes of mixed drops and pods that come and go: memory stays flat, and every packet is accounted for",
        runs_agent: true,
        on_request: true,
    },
];

/// The name that stands for every bench and the page.
const ALL: &str = "all";

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        BENCHES.iter().for_each(|bench| println!("{:<10} {}", bench.name, bench.measures));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.names {
        if name != ALL && !BENCHES.iter().any(|bench| bench.name == name) {
            bail!("no bench `{name}`; cargo xtask bench --list names them");
        }
    }
    setup::ensure(&[Need::Build, Need::Lab])?;
    let page = args.names.iter().any(|name| name == ALL);
    let named = |bench: &Bench| args.names.iter().any(|name| name == bench.name);
    let wanted = |bench: &&Bench| named(bench) || (!bench.on_request && (page || args.names.is_empty()));
    let (mut failed, mut results) = (Vec::new(), Vec::new());
    for bench in BENCHES.iter().filter(wanted) {
        println!("\n== {}: {}", bench.name, bench.measures);
        if bench.runs_agent && !machine::is_root() {
            println!("skipped: needs root");
            continue;
        }
        match one(bench, args) {
            Ok(text) => results.push((bench.name, bench.measures, text)),
            Err(error) => {
                println!("error: {error:#}");
                failed.push(bench.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if page {
        page::write(&results)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a bench and returns what it printed.
fn one(bench: &Bench, args: &Args) -> Result<String> {
    match bench.name {
        "api" => setup::ensure_programs(&[ETCD, API_SERVER])?,
        // A missing program is named in its row of the table.
        "drops" => setup::ensure(&[Need::Peers]).unwrap_or_else(|error| println!("{error:#}")),
        _ => {}
    }
    let mut command = machine::cargo();
    // With the features of the whole workspace, as every other build has them: no crate is built twice.
    command.args(["bench", "--quiet", "--locked", "--workspace", "--bench", bench.name, "--"]);
    command.args(&args.rest);
    if bench.runs_agent {
        command.env("NETPOL_TRACE_BIN", image::release()?);
    }
    if bench.name == "soak" {
        command.arg(args.minutes.to_string());
    }
    if bench.name == "drops"
        && let Some(folder) = setup::peers::folder()
    {
        command.env("NETPOL_TRACE_PEERS", folder);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| machine::show(&command))?;
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().context("a piped stdout")?).lines() {
        let line = line?;
        println!("{line}");
        text.push_str(&line);
        text.push('\n');
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{}: {status}", machine::show(&command));
    }
    Ok(text)
}
