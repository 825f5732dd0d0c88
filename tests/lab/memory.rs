//! Memory that the start needs for a moment is returned to the kernel.

use std::fs;

use anyhow::{Context, Result};
use netpol_trace_tests::pair::{DENY, Pair};
use netpol_trace_tests::{can_run_lab, eventually, require};

/// Without the program file and the ring. Measured: 9.3 MiB on a kernel with 5.3 MiB of BTF and 5.2 MiB of symbols, of which the agent
/// keeps 3 MiB. Reading them takes more than this limit for a moment.
const AT_REST_KIB: u64 = 16 * 1024;

#[test]
fn the_agent_is_small_at_rest() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let agent = pair.watch()?;
    let mut last = 0;
    let small = eventually("the agent's memory at rest", || {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
        last = line.trim().trim_end_matches("kB").trim().parse::<u64>()?;
        Ok((last < AT_REST_KIB).then_some(()))
    });
    small.with_context(|| format!("{last} KiB, wanted less than {AT_REST_KIB}"))?;
    agent.stop()?.balance()
}
