//! `netpol-trace-demo`: builds the demo's cluster out of network namespaces, runs the agent, sends the demo's traffic, and prints the
//! outcome of each connection. `cargo xtask demo` runs it.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::demo::{self, Demo, check, text};
use netpol_trace_tests::{can_run_lab, nft};

const USAGE: &str = "usage: netpol-trace-demo [RECORDS]

Runs the demo and writes the agent's records, one JSON object a line, to the file RECORDS
(netpol-trace-demo.jsonl). NETPOL_TRACE_BIN names another agent than the one beside this program.";

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().unwrap_or_else(|| "netpol-trace-demo.jsonl".into()));
    if arguments.next().is_some() || path.to_string_lossy().starts_with('-') {
        println!("{USAGE}");
        return Ok(ExitCode::from(2));
    }
    can_run_lab().context("the demo can't run here")?;
    let width = terminal_size::terminal_size().map_or(120, |(width, _)| usize::from(width.0)).max(40);

    let demo = Demo::start().context("the demo's cluster")?;
    let manifests = demo::manifests();
    let here = std::env::current_dir()?;
    let manifests = manifests.strip_prefix(&here).unwrap_or(&manifests);
    let agent = Agent::start(&["--all-drops", "--node-name", "worker-1", "--manifests", &manifests.to_string_lossy()])?;
    let attempts = demo.send()?;
    let run = agent.stop()?;
    let counters = nft::counters(demo.lab.node())?;

    let lines: String = run.records.iter().map(|record| format!("{record}\n")).collect();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(&path, lines).with_context(|| format!("write {}", path.display()))?;
    let mut wrong = [check::reality(&attempts), check::counters(&counters)].concat();
    wrong.extend(check::records(&demo.lab, &run.records, &attempts, &counters, run.lost()?, true));
    wrong.extend(run.balance().err().map(|error| format!("packet accounting: {error:#}")));

    println!("{}\n", text::headline(&attempts, wrong.len()));
    print!("{}", text::flows(&demo.lab, &run.records, &attempts, width));
    println!("The records, one JSON object a line: {}", path.strip_prefix(&here).unwrap_or(&path).display());
    println!("The policies behind them:            {}", manifests.display());
    println!("Ask about a connection without sending it:");
    println!(
        "  netpol-trace explain --manifests {} --from qa-test/frontend-7d9c8bf9d-x2lkp --to staging/svc/db-svc --port 3306/TCP",
        manifests.display()
    );
    for line in &wrong {
        println!("\nDISAGREES {}", text::plain(line));
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
