//! Sets up Open vSwitch's kernel datapath with ovs-dpctl. No daemon runs, so the datapath drops packets that match no flow.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::cluster::toolchain;
use crate::netns::Netns;

/// The environment variable that overrides the folder into which `cargo xtask setup` unpacks Open vSwitch.
pub const FOLDER: &str = "NETPOL_TRACE_OVS";
/// The name of the datapath and of its own device.
const DATAPATH: &str = "lab-ovs";
/// Actions that send the packet nowhere, so that the flow drops it. ovs-dpctl 3.1 can't add a flow without actions.
pub const DROP: &str = "ct_clear";

/// A datapath in a network namespace, which ends with the namespace.
#[derive(Debug)]
pub struct Switch<'a> {
    netns: &'a Netns,
    folder: PathBuf,
}

impl Switch<'_> {
    /// # Errors
    /// If the program or the kernel's module is missing.
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

    /// Adds a device as a port. Ports are numbered from 1.
    pub fn add_port(&self, device: &str) -> Result<()> {
        self.run(&["add-if", DATAPATH, device]).map(drop)
    }

    /// Adds a flow: packets that match `key` get `actions`.
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
