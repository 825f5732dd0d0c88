//! The kernel's side of the books: per-CPU counters of the programs, summed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use aya::maps::{Array, MapData};
use netpol_trace_common::{Counters as Raw, PerCpu, REASONS};

use super::carry::Carry;
use super::object::PerCpuPod;
use crate::model::KernelTotals;

/// Reads the counters; cheap enough for once a second.
pub struct Counters {
    per_cpu: Array<MapData, PerCpuPod>,
    /// The attached program: the kernel counts its recursion misses.
    program: aya::programs::ProgramFd,
    /// Reasons left to `--all-drops`, with their names: seen and counted, not recorded.
    unrecorded: Vec<(u32, String)>,
    /// What the runs before counted and told, in the same maps.
    base: Base,
    /// The last word, when the programs go on without the agent.
    closed: OnceLock<Raw>,
}

/// What is not this run's to tell.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) counters: Raw,
    seen: [u64; REASONS],
    recursion_misses: u64,
}

impl Default for Base {
    fn default() -> Base {
        Base { counters: Raw::default(), seen: [0; REASONS], recursion_misses: 0 }
    }
}

/// The books, and what was seen but not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    pub totals: KernelTotals,
    /// Drops for other reasons than policy, counted in the kernel only, by reason.
    pub not_recorded: BTreeMap<String, u64>,
}

impl Counters {
    pub(super) fn new(
        per_cpu: Array<MapData, PerCpuPod>,
        program: aya::programs::ProgramFd,
        unrecorded: Vec<(u32, String)>,
    ) -> Counters {
        Counters { per_cpu, program, unrecorded, base: Base::default(), closed: OnceLock::new() }
    }

    /// Leaves out what the runs before told: `carry` says how far they came.
    pub(super) fn since(mut self, carry: &Carry) -> Result<Counters, aya::maps::MapError> {
        let (emitted, aggregated) =
            (carry.emitted().load(Ordering::Acquire), carry.aggregated().load(Ordering::Acquire));
        let lost_ring = carry.lost().load(Ordering::Acquire);
        let counters = Raw { matched: emitted + aggregated + lost_ring, emitted, aggregated, lost_ring };
        let (_, seen) = self.sum()?;
        self.base = Base { counters, seen, recursion_misses: self.recursion_misses() };
        Ok(self)
    }

    /// From now on says what had been taken out of the kernel at this moment: what the programs count further on is for the next
    /// agent.
    pub fn close(&self, carry: &Carry) {
        let (emitted, aggregated) =
            (carry.emitted().load(Ordering::Acquire), carry.aggregated().load(Ordering::Acquire));
        if let Ok((Raw { lost_ring, .. }, _)) = self.sum() {
            let _ = self.closed.set(Raw { matched: emitted + aggregated + lost_ring, emitted, aggregated, lost_ring });
        }
    }

    fn sum(&self) -> Result<(Raw, [u64; REASONS]), aya::maps::MapError> {
        let mut sum = Raw::default();
        let mut by_reason = [0; REASONS];
        for entry in self.per_cpu.iter() {
            let PerCpuPod(PerCpu { counters, seen, .. }) = entry?;
            let Raw { matched, emitted, aggregated, lost_ring } = counters;
            sum.matched += matched;
            sum.emitted += emitted;
            sum.aggregated += aggregated;
            sum.lost_ring += lost_ring;
            by_reason.iter_mut().zip(&seen).for_each(|(sum, seen)| *sum += seen);
        }
        Ok((sum, by_reason))
    }

    /// Freed packets for which the kernel did not run the program, since it was running on that CPU already.
    fn recursion_misses(&self) -> u64 {
        recursion_misses(self.program.as_fd().as_raw_fd())
    }

    pub fn read(&self) -> Result<Reading, aya::maps::MapError> {
        let (sum, mut by_reason) = self.sum()?;
        let Base { counters: base, seen, recursion_misses } = &self.base;
        by_reason.iter_mut().zip(seen).for_each(|(sum, seen)| *sum -= seen);
        let sum = self.closed.get().copied().unwrap_or(sum);
        let sum = Raw {
            matched: sum.matched.saturating_sub(base.matched),
            emitted: sum.emitted.saturating_sub(base.emitted),
            aggregated: sum.aggregated.saturating_sub(base.aggregated),
            lost_ring: sum.lost_ring.saturating_sub(base.lost_ring),
        };
        let not_recorded = self.unrecorded.iter().filter_map(|(reason, name)| {
            let count = *by_reason.get(*reason as usize)?;
            (count > 0).then(|| (name.clone(), count))
        });
        Ok(Reading {
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

/// `bpf_prog_info.recursion_misses` (from 5.12): runs that the kernel skipped because the program was running on that CPU. 0 on
/// kernels without that field.
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
    // SAFETY: `attr` is the info member of union bpf_attr and `info` has the `len` octets that it promises; the kernel
    // fills at most that many. aya reads the same structure but does not expose this field.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<Attr>()) };
    if result == 0 && attr.len as usize >= RECURSION_MISSES + 8 { info[RECURSION_MISSES / 8] } else { 0 }
}
