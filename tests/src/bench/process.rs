//! Figures of a process from /proc: processor time, memory, and the BPF programs and maps that it holds.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::statistics::Spent;

/// Program types as bpf(2) numbers them.
pub const SCHED_CLS: u32 = 3;
pub const TRACING: u32 = 26;

/// Processor time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    pub fn since(self, before: Cpu) -> Cpu {
        Cpu { user: self.user.saturating_sub(before.user), system: self.system.saturating_sub(before.system) }
    }
}

/// The processor time of all threads of a process, in clock ticks: exact to a hundredth of a second.
pub fn cpu(pid: u32) -> Result<Cpu> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let tick = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("the clock's ticks a second")?;
    let time = |at: usize| -> Result<Duration> {
        let ticks: f64 = fields.get(at).context("a field of stat")?.parse()?;
        Ok(Duration::from_secs_f64(ticks / tick as f64))
    };
    Ok(Cpu { user: time(11)?, system: time(12)? })
}

/// Resident memory in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The run time of the programs of these types (none: all types) that a process holds.
pub fn spent(pid: u32, types: &[u32]) -> Result<Spent> {
    let mut programs = BTreeMap::new();
    for info in infos(pid)? {
        if let Some((kind, id, spent)) = program(&info)
            && (types.is_empty() || types.contains(&kind))
        {
            programs.insert(id, spent);
        }
    }
    let mut sum = Spent::default();
    programs.into_values().for_each(|spent| sum += spent);
    Ok(sum)
}

/// How many programs a process holds.
pub fn programs(pid: u32) -> Result<usize> {
    Ok(infos(pid)?.iter().filter(|info| program(info).is_some()).count())
}

/// Type, id and statistics of a program, from its fdinfo.
pub fn program(info: &str) -> Option<(u32, u64, Spent)> {
    let read = |name| number(info, name).unwrap_or(0);
    let spent = Spent { ns: read("run_time_ns"), runs: read("run_cnt"), missed: read("recursion_misses") };
    Some((number(info, "prog_type")? as u32, number(info, "prog_id")?, spent))
}

/// The kernel memory of a process's maps in bytes, and their number.
pub fn maps(pid: u32) -> Result<(u64, usize)> {
    let mut maps = BTreeMap::new();
    for info in infos(pid)? {
        if let (Some(id), Some(bytes)) = (number(&info, "map_id"), number(&info, "memlock")) {
            maps.insert(id, bytes);
        }
    }
    Ok((maps.values().sum(), maps.len()))
}

fn infos(pid: u32) -> Result<Vec<String>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let entries = std::fs::read_dir(&folder).with_context(|| folder)?;
    // A descriptor may have been closed meanwhile.
    Ok(entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect())
}

fn number(info: &str, name: &str) -> Option<u64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}
