//! Everything a developer or CI runs: one file per subcommand.

mod bench;
mod cluster;
#[path = "../../tests/src/cluster/programs.rs"]
mod cluster_programs;
mod compatibility;
mod demo;
mod dist;
mod image;
mod machine;
mod report;
mod setup;
mod skips;
mod test;
#[path = "../../netpol-trace/build/toolchain.rs"]
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, show, test and measure netpol-trace.
///
/// On a fresh machine start with `cargo xtask demo` or `cargo xtask test`: each runs `setup` when something is
/// missing. After setup a plain `cargo build --release` builds everything, the eBPF programs included.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Setup(setup::Args),
    Demo(demo::Args),
    Test(test::Args),
    Vm(vm::Args),
    Bench(bench::Args),
    Cluster(cluster::Args),
    Compatibility(compatibility::Args),
    Image(image::Args),
    Dist(dist::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Cluster(args) => cluster::run(&args),
        Task::Compatibility(args) => compatibility::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Dist(args) => dist::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
