//! `netpol-trace-cluster`: starts a control plane that stays, or stops it. `cargo xtask cluster` runs it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use netpol_trace_tests::cluster::control_plane::{self, ControlPlane, KUBECONFIG};
use netpol_trace_tests::cluster::daemon::{Daemon, Lifetime};
use netpol_trace_tests::cluster::{built, programs};

const USAGE: &str = "usage: netpol-trace-cluster up|down DIR

up starts etcd and kube-apiserver with their state in DIR and leaves them running; down ends them and removes DIR.";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up", dir] => up(&std::path::absolute(dir)?),
        ["down", dir] => down(&std::path::absolute(dir)?),
        _ => {
            println!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

fn up(dir: &Path) -> Result<ExitCode> {
    let start = Instant::now();
    let running = control_plane::running(dir)?;
    if running.len() == 2 {
        println!("It is running already ({}).", names(&running));
        tell(&dir.join(KUBECONFIG));
        return Ok(ExitCode::SUCCESS);
    }
    // Removes what an ended control plane, or a start that failed, has left.
    control_plane::stop(dir)?;
    let control_plane = ControlPlane::start(dir, Lifetime::Detached)?;
    control_plane.write_processes()?;
    let processes = names(&[control_plane.etcd, control_plane.server]);
    println!("Ready in {:.1} s: {processes}", start.elapsed().as_secs_f32());
    tell(&dir.join(KUBECONFIG));
    Ok(ExitCode::SUCCESS)
}

fn down(dir: &Path) -> Result<ExitCode> {
    let ended = control_plane::stop(dir)?;
    if ended.is_empty() {
        println!("None was running.");
    } else {
        println!("Ended: {}", names(&ended));
    }
    Ok(ExitCode::SUCCESS)
}

fn names(daemons: &[Daemon]) -> String {
    daemons.iter().map(|daemon| format!("{} (process {})", daemon.name(), daemon.pid())).collect::<Vec<_>>().join(", ")
}

fn tell(kubeconfig: &Path) {
    let kubectl = built(&programs::KUBECTL).map_or_else(|_| "kubectl".to_owned(), |path| path.display().to_string());
    println!("kubeconfig: {}", kubeconfig.display());
    println!("Try:  {kubectl} --kubeconfig {} get namespaces", kubeconfig.display());
    println!("End it with:  cargo xtask cluster down");
}
