//! `cargo xtask demo`: builds the demo's cluster on this machine, runs the agent, and prints the outcome of each connection.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::machine;
use crate::setup::{self, Need};

/// Show the agent at work: a small cluster of network namespaces, real connections, and the reason for each that failed.
///
/// Needs root. Changes nothing outside the demo's own namespaces, which end with it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write the agent's records, one JSON object a line
    #[arg(long, value_name = "PATH", default_value = "target/demo.jsonl")]
    output: std::path::PathBuf,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if !machine::is_root() {
        bail!("the demo makes network namespaces and loads BPF programs, which needs root: sudo -E cargo xtask demo");
    }
    setup::ensure(&[Need::Build, Need::Lab])?;
    let output = std::path::absolute(&args.output)?;
    // With the features of the whole workspace, as `cargo xtask test` builds them: nothing is built twice.
    let programs = ["--bin", "netpol-trace", "--bin", "netpol-trace-demo"];
    machine::run(machine::cargo().args(["build", "--workspace", "--locked"]).args(programs))?;
    let mut demo = std::process::Command::new(machine::target().join("debug/netpol-trace-demo"));
    let status = demo.arg(output).current_dir(machine::root()).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
