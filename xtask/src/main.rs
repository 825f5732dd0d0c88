//! Everything a developer or CI runs: one file per verb.

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
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
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
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Vm(args) => vm::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Compatibility(args) => compatibility::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::Dist(args) => dist::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
