//! `cargo xtask demo`: the demo's cluster on this machine, the agent watching, and what became of each connection.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs the demo, a program of the tests' package, with the agent at `agent`. Its records go to `target/demo.jsonl`.
pub fn run(agent: &Path) -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--package", "netpol-trace-tests", "--bin", "netpol-trace-demo", "--"])
        .arg("target/demo.jsonl")
        .env("NETPOL_TRACE_BIN", std::path::absolute(agent)?)
        .current_dir(root)
        .status()
        .context("run cargo")?;
    if !status.success() {
        bail!("the demo failed: {status}");
    }
    Ok(())
}
