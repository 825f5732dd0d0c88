//! The lab: network namespaces, a real enforcer, real packets, and the agent that watches them.
//!
//! A [`Lab`](topology::Lab) is a node: a network namespace that routes between hosts (pods, servers outside), each in a namespace of its own
//! behind a veth pair. An nftables ruleset in the node's namespace enforces, and its counters are what records are compared
//! with. [`Agent`](agent::Agent) runs the real binary.
//!
//! A lab changes nothing outside its own namespaces. They have no names, only file descriptors, so they end with the process. The agent
//! sees drops of the whole host: a test picks its own by the namespaces' inode numbers ([`Lab::owns`](topology::Lab::owns)).

pub mod accounting;
pub mod agent;
pub mod bench;
pub mod bpf;
pub mod bpf_fs;
pub mod capture;
pub mod cluster;
pub mod collector;
pub mod containerd;
pub mod demo;
pub mod iptables;
pub mod netns;
pub mod nft;
pub mod ovs;
pub mod packet;
pub mod pair;
pub mod process;
pub mod program;
pub mod record;
pub mod row;
pub mod server;
pub mod skip;
pub mod topology;
pub mod traffic;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use skip::missing;

/// How long to wait for something that should take milliseconds, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the lab requires of this machine: root, `ip`, `nft` and network namespaces.
pub fn can_run_lab() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(missing("the lab makes network namespaces and loads BPF programs, which needs root (sudo)"));
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        has_program(program, package)?;
    }
    netns::Netns::new("probe").map(drop).map_err(|error| missing(format!("no network namespaces here: {error:#}")))
}

/// Requires a program of a Debian package.
pub fn has_program(program: &str, package: &str) -> Result<()> {
    if on_path(program) { Ok(()) } else { Err(missing(format!("no `{program}` here: apt-get install {package}"))) }
}

/// Calls `ask` until it returns something; an error after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("not within {PATIENCE:?}: {what}");
        }
        // For conditions that can only be polled.
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()])
        .any(|dir| dir.join(program).is_file())
}
