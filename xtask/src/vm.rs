//! `cargo xtask vm`: runs the lab's tests on other kernels.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::report::{Steps, Tally, count};
use crate::setup::{self, Need};
use crate::skips::Machine;
use crate::test::{self, TestProgram};
use crate::{image, machine};

/// Boot Debian kernels in QEMU and run the lab's tests inside, as root.
///
/// Downloads the kernels once from the Debian archive into the cache. Without KVM, QEMU emulates the processor, and a boot takes
/// half a minute.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Version prefixes; the newest Debian kernel of each is booted
    #[arg(value_name = "KERNEL", default_values = KERNELS)]
    kernels: Vec<String>,
    /// Only tests whose names contain this (repeatable)
    #[arg(long = "test", value_name = "NAME")]
    filters: Vec<String>,
}

/// The kernels that the agent is tested on.
pub const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.2"];
/// The test program of the lab.
const LAB: &str = "lab";
/// Enough for the whole lab, emulated, on a busy machine.
const VM_LIMIT_SECONDS: &str = "7200";
/// This test needs a kernel without loaded netfilter modules, so it gets a boot of its own.
const FRESH: &str = "late_modules";
/// boot.sh's exit code if this machine can't boot a virtual machine.
const CANNOT: i32 = 126;

pub fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[Need::Build, Need::Lab, Need::Vm])?;
    let programs = test::build()?;
    let agent = image::release()?;
    let mut steps = Steps::new(true);
    for kernel in &args.kernels {
        if args.filters.is_empty() || args.filters.iter().any(|filter| FRESH.contains(filter.as_str())) {
            step(&mut steps, kernel, &agent, &programs, &[FRESH]);
        }
        step(&mut steps, kernel, &agent, &programs, &args.filters);
    }
    Ok(steps.finish())
}

/// Runs the lab's tests inside `kernel` as a step, those that contain one of `filters` if there are any. Skipped, with the
/// reason, if this machine can't boot one. `agent` is the release: emulation makes a debug build too slow for tests that
/// count tens of thousands of packets.
pub fn step<S: AsRef<str>>(steps: &mut Steps, kernel: &str, agent: &Path, programs: &[TestProgram], filters: &[S]) {
    let name = format!("lab on kernel {kernel}");
    match command(kernel, agent, programs, filters) {
        Ok(Ok(mut command)) => {
            // Tests run in the order of their names: FRESH runs before the tests that load a module, if a filter selects it.
            let fresh = filters.iter().any(|filter| filter.as_ref() == FRESH);
            steps.step_on(&Machine::vm(kernel, fresh), &name, || count(LAB, &mut command));
        }
        Ok(Err(why)) => steps.step(&name, || Ok(Tally::skipped(&name, why))),
        Err(error) => steps.step(&name, || Err(error)),
    }
}

/// Returns the command that runs the lab's tests inside `kernel`, or the reason why this machine can't boot one.
pub fn command<S: AsRef<str>>(
    kernel: &str,
    agent: &Path,
    programs: &[TestProgram],
    filters: &[S],
) -> Result<std::result::Result<Command, String>> {
    if let Err(why) = setup::ensure(&[Need::Vm]) {
        return Ok(Err(format!("{why:#}").replace('\n', "; ")));
    }
    let lab =
        programs.iter().find(|program| program.target == LAB).context("cargo built no test program of the lab")?;
    let fetch = boot().args(["--fetch", kernel]).output().context("can't run tests/vm/boot.sh")?;
    if fetch.status.code() == Some(CANNOT) {
        let why = String::from_utf8_lossy(&fetch.stderr);
        return Ok(Err(why.lines().last().unwrap_or_default().to_owned()));
    }
    let mut command = boot();
    command.arg("-f").arg(agent).arg("-f").arg(machine::root().join("tests/demo"));
    command.arg("-e").arg(format!("NETPOL_TRACE_BIN={}", agent.display()));
    if let Some(switch) = setup::switch::folder() {
        let libraries = switch.join("usr/lib/x86_64-linux-gnu");
        command.arg("-f").arg(switch.join("usr/bin/ovs-dpctl")).arg("-f").arg(libraries);
        command.arg("-e").arg(format!("NETPOL_TRACE_OVS={}", switch.display()));
    }
    // The virtual machine has one processor: one test at a time.
    command
        .args(["-t", VM_LIMIT_SECONDS, kernel, "--"])
        .arg(&lab.path)
        .args(["--test-threads", "1"])
        .args(filters.iter().map(AsRef::as_ref));
    Ok(Ok(command))
}

fn boot() -> Command {
    let mut command = Command::new("bash");
    command.arg(machine::root().join("tests/vm/boot.sh")).stdin(Stdio::null());
    command
}
