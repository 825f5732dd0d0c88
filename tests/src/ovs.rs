//! Open vSwitch: the kernel's own datapath, set up with ovs-dpctl. No daemon runs; what no flow matches is dropped.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::cluster::toolchain;
use crate::netns::Netns;

/// Overrides the folder that `cargo xtask setup` unpacks Open vSwitch into.
pub const FOLDER: &str = "NETPOL_TRACE_OVS";
/// The datapath's name, which is also its own device's.
const DATAPATH: &str = "lab-ovs";
/// Actions that leave the packet nowhere to go: the flow drops it. (A flow with none at all is beyond ovs-dpctl 3.1.)
pub const DROP: &str = "ct_clear";

/// A datapath in a network namespace. It ends with that.
#[derive(Debug)]
pub struct Switch<'a> {
    netns: &'a Netns,
    folder: PathBuf,
}

impl Switch<'_> {
    /// # Errors
    /// The program or the kernel's module is missing.
    pub fn new(netns: &Netns) -> Result<Switch<'_>> {
        let switch = Switch::at(netns);
        let program = switch.program();
        ensure!(program.is_file(), "no {}: `cargo xtask setup` unpacks it, on Debian", program.display());
        switch.run(&["add-dp", DATAPATH])?;
        Ok(switch)
    }

    /// The datapath that [`Switch::new`] made in this network namespace.
    pub fn at(netns: &Netns) -> Switch<'_> {
        let folder = std::env::var_os(FOLDER).map_or_else(|| toolchain::cache_dir().join("ovs"), PathBuf::from);
        Switch { netns, folder }
    }

    /// Gives it a device as a port. Ports are numbered from 1 on.
    pub fn add_port(&self, device: &str) -> Result<()> {
        self.run(&["add-if", DATAPATH, device]).map(drop)
    }

    /// Does with what matches `key` what `actions` say.
    pub fn add_flow(&self, key: &str, actions: &str) -> Result<()> {
        self.run(&["add-flow", DATAPATH, key, actions]).map(drop)
    }

    /// Packets of the flows that drop.
    pub fn dropped(&self) -> Result<u64> {
        let flows = self.run(&["dump-flows", DATAPATH])?;
        let dropping = flows.lines().filter(|line| line.ends_with(&format!("actions:{DROP}")));
        let packets = |line: &str| -> Option<u64> { line.split("packets:").nth(1)?.split(',').next()?.parse().ok() };
        dropping.map(|line| packets(line).with_context(|| format!("no count in {line:?}"))).sum()
    }

    fn program(&self) -> PathBuf {
        self.folder.join("usr/bin/ovs-dpctl")
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let libraries = format!("LD_LIBRARY_PATH={}", self.folder.join("usr/lib/x86_64-linux-gnu").display());
        let program = self.program().to_string_lossy().into_owned();
        let all: Vec<&str> = [libraries.as_str(), &program].into_iter().chain(arguments.iter().copied()).collect();
        let output = self.netns.command("env", &all, "")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
