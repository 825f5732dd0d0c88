//! BPF run-time statistics: nanoseconds and runs of programs. Measuring costs some 50 ns a run, the same for every program: compare with
//! an empty program in the same run.

use std::ops::{AddAssign, Sub};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::bpf::bpf;

/// Keeps the kernel's statistics on until this is dropped or the process ends.
#[derive(Debug)]
pub struct Statistics(#[expect(dead_code, reason = "held for its end")] OwnedFd);

impl Statistics {
    pub fn on() -> Result<Statistics> {
        const BPF_ENABLE_STATS: i32 = 32;
        // Zero: BPF_STATS_RUN_TIME.
        Ok(Statistics(bpf(BPF_ENABLE_STATS, &[0; 16]).context("switch on BPF statistics (Linux 5.8)")?))
    }
}

/// Sums of programs so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    pub ns: u64,
    pub runs: u64,
    /// Runs that the kernel skipped because the program was running on that CPU already.
    pub missed: u64,
}

impl Spent {
    /// Nanoseconds a run.
    pub fn each(self) -> f64 {
        self.ns as f64 / self.runs.max(1) as f64
    }
}

impl Sub for Spent {
    type Output = Spent;

    fn sub(self, before: Spent) -> Spent {
        // A program that was unloaded is missing in the later sum.
        let since = |now: u64, before: u64| now.saturating_sub(before);
        Spent {
            ns: since(self.ns, before.ns),
            runs: since(self.runs, before.runs),
            missed: since(self.missed, before.missed),
        }
    }
}

impl AddAssign for Spent {
    fn add_assign(&mut self, more: Spent) {
        self.ns += more.ns;
        self.runs += more.runs;
        self.missed += more.missed;
    }
}
