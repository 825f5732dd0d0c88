//! `cargo xtask cluster`: starts a real control plane, runs the tests against one, and stops it.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::cluster_programs::{API_SERVER, ETCD, PROGRAMS};
use crate::machine;
use crate::setup::{self, Need};

/// Start a real Kubernetes control plane on this machine, stop it, or run the tests that use one.
///
/// etcd and kube-apiserver, built by Go 1.26 the first time (the API server takes some minutes), listening on free ports
/// of the loopback interface, with all state in target/cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Start it and leave it running; prints the kubeconfig's path
    Up,
    /// Run the tests against real control planes of their own, with real enforcers; needs root
    Test {
        /// Only tests whose names contain this
        filter: Option<String>,
    },
    /// Stop what `up` started and remove its state
    Down,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        ClusterCommand::Up => {
            setup::ensure_programs(&[ETCD, API_SERVER])?;
            control("up")
        }
        ClusterCommand::Down => control("down"),
        ClusterCommand::Test { filter } => {
            setup::ensure(&[Need::Build, Need::Lab])?;
            setup::ensure_programs(&PROGRAMS)?;
            let mut command = machine::cargo();
            command.args(["test", "--locked", "--workspace", "--test", "cluster", "--"]).args(filter);
            machine::run(&mut command)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs `netpol-trace-cluster` of the tests' package, which starts and stops the control plane.
fn control(subcommand: &str) -> Result<ExitCode> {
    machine::run(machine::cargo().args([
        "build",
        "--quiet",
        "--workspace",
        "--locked",
        "--bin",
        "netpol-trace-cluster",
    ]))?;
    let mut command = Command::new(machine::target().join("debug/netpol-trace-cluster"));
    let status = command.arg(subcommand).arg(machine::target().join("cluster")).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
