//! Loads iptables rules and reads their counters, with either backend: `iptables-legacy`, `ip6tables-nft`, …

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::skip::missing;

/// The programs of one backend (`legacy` or `nft`), IPv4's first.
pub fn programs(backend: &str) -> [String; 2] {
    [format!("iptables-{backend}"), format!("ip6tables-{backend}")]
}

/// Requires a backend whose program is here and whose tables the kernel has.
pub fn can_load(netns: &Netns, backend: &str) -> Result<()> {
    load(netns, backend, "-L -n").map_err(|error| missing(format!("no iptables-{backend} here: {error:#}")))
}

/// Runs each line as arguments, with both families' programs.
pub fn load(netns: &Netns, backend: &str, lines: &str) -> Result<()> {
    for program in programs(backend) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let arguments: Vec<&str> = line.split_whitespace().chain(["--wait"]).collect();
            netns.command(&program, &arguments, "")?;
        }
    }
    Ok(())
}

/// Packets of the rules with this comment, in both families.
pub fn counted(netns: &Netns, backend: &str, comment: &str) -> Result<u64> {
    let mark = format!("/* {comment} */");
    let mut packets = 0;
    for program in programs(backend) {
        let output = netns.command(&program, &["-nvxL", "--wait"], "")?;
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in listing.lines().filter(|line| line.contains(&mark)) {
            let count = line.split_whitespace().next().context("an iptables rule begins with its packets")?;
            packets += count.parse::<u64>().with_context(|| format!("{program}: {line}"))?;
        }
    }
    Ok(packets)
}
