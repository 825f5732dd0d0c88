//! `netpol-trace print-binary`: copies the program out of an image that has no shell and no tar.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, bail};

/// Write this program to standard output. `kubectl cp` cannot copy it: the image has no tar.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kubectl -n netpol-trace exec ds/netpol-trace -- /netpol-trace print-binary > kubectl-netpol_trace
  chmod +x kubectl-netpol_trace     in a folder of your PATH it is kubectl netpol-trace; it runs on Linux on the node's architecture")]
pub struct PrintBinaryArgs {}

/// The running program, also after its file was replaced.
const SELF: &str = "/proc/self/exe";

pub fn run(_: &PrintBinaryArgs) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        bail!("standard output is a terminal; write the program to a file: print-binary > kubectl-netpol_trace");
    }
    let mut program = File::open(SELF).context(SELF)?;
    io::copy(&mut program, &mut out).context("write the program")?;
    Ok(ExitCode::SUCCESS)
}
