//! The kernel's part of packet accounting: the programs' per-CPU counters, summed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use aya::maps::{Array, MapData};
use netpol_trace_common::{DropCounters, PerCpu, REASONS};

use super::handover::Handover;
use super::object::PerCpuPod;
use crate::model::KernelTotals;

/// Reads the counters; cheap enough to call once a second.
pub struct KernelCounters {
    per_cpu: Array<MapData, PerCpuPod>,
    /// The attached program, whose recursion misses the kernel counts.
    program: aya::programs::ProgramFd,
    /// ReasonNumbers that only `--all-drops` records, with their names.
    unrecorded: Vec<(u32, String)>,
    /// Counts of earlier agents in the same maps.
    baseline: Baseline,
    /// The final counts of this agent, when the programs go on without it.
    closed: OnceLock<DropCounters>,
}

/// Counts that earlier agents reported.
#[derive(Debug, Clone)]
pub(super) struct Baseline {
    pub(super) counters: DropCounters,
    seen: [u64; REASONS],
    recursion_misses: u64,
}

impl Default for Baseline {
    fn default() -> Baseline {
        Baseline { counters: DropCounters::default(), seen: [0; REASONS], recursion_misses: 0 }
    }
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CounterReading {
    pub totals: KernelTotals,
    /// Drops for reasons that only `--all-drops` records, by reason.
    pub not_recorded: BTreeMap<String, u64>,
}

impl KernelCounters {
    pub(super) fn new(
        per_cpu: Array<MapData, PerCpuPod>,
        program: aya::programs::ProgramFd,
        unrecorded: Vec<(u32, String)>,
    ) -> KernelCounters {
        KernelCounters { per_cpu, program, unrecorded, baseline: Baseline::default(), closed: OnceLock::new() }
    }

    /// Subtracts the counts that earlier agents reported, according to `handover`.
    pub(super) fn since(mut self, handover: &Handover) -> Result<KernelCounters, aya::maps::MapError> {
        let (emitted, aggregated) =
            (handover.emitted().load(Ordering::Acquire), handover.aggregated().load(Ordering::Acquire));
        let lost_ring = handover.lost().load(Ordering::Acquire);
        let counters = DropCounters { matched: emitted + aggregated + lost_ring, emitted, aggregated, lost_ring };
        let (_, seen) = self.sum()?;
        self.baseline = Baseline { counters, seen, recursion_misses: self.recursion_misses() };
        Ok(self)
    }

    /// Fixes the counts at what this agent has read from the kernel: the programs go on counting for the next agent.
    pub fn close(&self, handover: &Handover) {
        let (emitted, aggregated) =
            (handover.emitted().load(Ordering::Acquire), handover.aggregated().load(Ordering::Acquire));
        if let Ok((DropCounters { lost_ring, .. }, _)) = self.sum() {
            let _ = self.closed.set(DropCounters {
                matched: emitted + aggregated + lost_ring,
                emitted,
                aggregated,
                lost_ring,
            });
        }
    }

    fn sum(&self) -> Result<(DropCounters, [u64; REASONS]), aya::maps::MapError> {
        let mut sum = DropCounters::default();
        let mut by_reason = [0; REASONS];
        for entry in self.per_cpu.iter() {
            let PerCpuPod(PerCpu { counters, seen, .. }) = entry?;
            let DropCounters { matched, emitted, aggregated, lost_ring } = counters;
            sum.matched += matched;
            sum.emitted += emitted;
            sum.aggregated += aggregated;
            sum.lost_ring += lost_ring;
            by_reason.iter_mut().zip(&seen).for_each(|(sum, seen)| *sum += seen);
        }
        Ok((sum, by_reason))
    }

    /// Freed packets for which the kernel did not run the program, because it was already running on that CPU.
    fn recursion_misses(&self) -> u64 {
        recursion_misses(self.program.as_fd().as_raw_fd())
    }

    pub fn read(&self) -> Result<CounterReading, aya::maps::MapError> {
        let (sum, mut by_reason) = self.sum()?;
        let Baseline { counters: base, seen, recursion_misses } = &self.baseline;
        by_reason.iter_mut().zip(seen).for_each(|(sum, seen)| *sum -= seen);
        let sum = self.closed.get().copied().unwrap_or(sum);
        let sum = DropCounters {
            matched: sum.matched.saturating_sub(base.matched),
            emitted: sum.emitted.saturating_sub(base.emitted),
            aggregated: sum.aggregated.saturating_sub(base.aggregated),
            lost_ring: sum.lost_ring.saturating_sub(base.lost_ring),
        };
        let not_recorded = self.unrecorded.iter().filter_map(|(reason, name)| {
            let count = *by_reason.get(*reason as usize)?;
            (count > 0).then(|| (name.clone(), count))
        });
        Ok(CounterReading {
            totals: KernelTotals {
                seen: by_reason.iter().sum::<u64>().max(sum.matched),
                matched: sum.matched,
                emitted: sum.emitted,
                aggregated: sum.aggregated,
                lost: sum.lost_ring,
                recursion_misses: self.recursion_misses().saturating_sub(*recursion_misses),
            },
            not_recorded: not_recorded.collect(),
        })
    }
}

/// `bpf_prog_info.recursion_misses` (from 5.12): runs that the kernel skipped because of its recursion protection. 0 on kernels without
/// that field.
fn recursion_misses(program: i32) -> u64 {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    /// Offset of `recursion_misses` in `struct bpf_prog_info` (uapi, fixed).
    const RECURSION_MISSES: usize = 208;
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = [0u64; 32];
    let mut attr = Attr { fd: program as u32, len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: `attr` is the info member of union bpf_attr and `info` has `len` bytes; the kernel fills
    // at most that many. aya reads the same structure but does not expose this field.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<Attr>()) };
    if result == 0 && attr.len as usize >= RECURSION_MISSES + 8 { info[RECURSION_MISSES / 8] } else { 0 }
}
