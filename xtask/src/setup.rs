//! `cargo xtask setup`: finds out what the machine has and installs what is missing.

mod cluster;
mod consumers;
mod ebpf;
mod packages;
pub mod peers;
mod runtime;
pub mod switch;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

pub use cluster::{are_built, ensure as ensure_programs, no_go};
pub use ebpf::cargo_deny;

use crate::cluster_programs::{COLLECTOR, PROGRAMS};
use crate::toolchain;

/// Install what building, the demo and the tests need.
///
/// On Debian it installs packages, as root. Elsewhere it installs a rustup nightly with rust-src, and names the programs for you to
/// install. bpf-linker and the test cluster's programs (by Go 1.26, the API server in some minutes) are built once into
/// a cache outside the checkout (XDG_CACHE_HOME or ~/.cache). When nothing is missing, it does nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only list what is missing; the exit code is 1 if anything is
    #[arg(long)]
    check: bool,
}

/// What a subcommand needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The eBPF compiler and linker: for every build.
    Build,
    /// What the lab and the demo enforce policies with.
    Lab,
    /// Checks of the code itself: clippy for the eBPF crate, cargo-deny.
    Lint,
    /// Virtual machines with other kernels.
    Vm,
    /// Container images.
    Image,
    /// A container runtime to try them in.
    Runtime,
    /// The control plane and the enforcers of the cluster tests, and helm, built by Go.
    Cluster,
    /// Programs that read records in the tests.
    Consumers,
    /// Other programs that report drops, to compare with.
    Peers,
    /// The OpenTelemetry Collector. Go builds it for minutes, so only `cargo xtask setup` does, not a test run.
    Collector,
}

impl Need {
    pub const ALL: [Need; 9] = [
        Need::Build,
        Need::Lab,
        Need::Lint,
        Need::Vm,
        Need::Image,
        Need::Runtime,
        Need::Cluster,
        Need::Consumers,
        Need::Collector,
    ];
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    if args.check {
        let missing = missing(&Need::ALL);
        missing.iter().for_each(|what| println!("missing: {what}"));
        return Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let no_go = no_go();
    let needs =
        Need::ALL.into_iter().filter(|need| !matches!(need, Need::Cluster | Need::Collector) || no_go.is_none());
    ensure(&needs.collect::<Vec<_>>())?;
    if let Some(why) = no_go {
        println!("Left out: {why}");
    }
    match toolchain::find() {
        Ok(found) => println!("eBPF compiler: {}\nbpf-linker:    {}", ebpf::name(&found.kind), found.linker.display()),
        Err(why) => bail!("{why}"),
    }
    println!(
        "Ready in {:.1} s. Next: cargo xtask demo, cargo xtask test, cargo build --release",
        start.elapsed().as_secs_f32()
    );
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing for these needs.
///
/// # Errors
/// What could not be installed and what to do. The rest is installed all the same.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let mut errors = Vec::new();
    if let Err(error) = packages::ensure(needs) {
        errors.push(format!("{error:#}"));
    }
    if needs.contains(&Need::Build)
        && let Err(error) = ebpf::ensure()
    {
        errors.push(format!("{error:#}"));
    }
    if needs.contains(&Need::Vm) {
        // Without it the rows of Open vSwitch are skipped, each with the reason.
        switch::folder();
    }
    if needs.contains(&Need::Lint)
        && let Err(error) = ebpf::ensure_cargo_deny()
    {
        errors.push(format!("{error:#}"));
    }
    if needs.contains(&Need::Cluster)
        && let Err(error) = cluster::ensure(&PROGRAMS)
    {
        errors.push(format!("{error:#}"));
    }
    if needs.contains(&Need::Runtime)
        && let Err(error) = runtime::ensure()
    {
        errors.push(format!("{error:#}"));
    }
    if needs.contains(&Need::Collector)
        && let Err(error) = cluster::ensure(&[COLLECTOR])
    {
        errors.push(format!("{error:#}"));
    }
    if needs.contains(&Need::Consumers)
        && let Err(error) = consumers::ensure()
    {
        errors.push(format!("{error:#}"));
    }
    if errors.is_empty() { Ok(()) } else { bail!(errors.join("\n")) }
}

/// What is missing for these needs, in words.
pub fn missing(needs: &[Need]) -> Vec<String> {
    let mut missing = packages::missing(needs).iter().map(|package| format!("package {package}")).collect::<Vec<_>>();
    if needs.contains(&Need::Build)
        && let Err(why) = toolchain::find()
    {
        missing.push(why.lines().next().unwrap_or_default().to_owned());
    }
    if needs.contains(&Need::Lint) && cargo_deny().is_none() {
        missing.push("cargo-deny".into());
    }
    if needs.contains(&Need::Cluster) {
        missing
            .extend(cluster::missing(&PROGRAMS).iter().map(|program| format!("{} of the test cluster", program.name)));
    }
    if needs.contains(&Need::Runtime) && runtime::is_missing() {
        missing.push("containerd for the tests".into());
    }
    if needs.contains(&Need::Consumers) {
        missing.extend(consumers::missing().into_iter().map(str::to_owned));
    }
    missing
}
