//! The kernel's side of the books: per-CPU counters of the programs, summed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{MapData, PerCpuArray};
use netpol_trace_common::{Counters as Raw, REASONS};

use super::attach::{CountersPod, PerCpuPod};
use crate::record::KernelTotals;

/// Reads the counters; cheap enough for once a second.
pub struct Counters {
    counters: PerCpuArray<MapData, CountersPod>,
    per_cpu: PerCpuArray<MapData, PerCpuPod>,
    /// Of the attached program, for its recursion misses.
    program: aya::programs::ProgramFd,
    /// Reasons left to `--all-drops`, with their names: seen and counted, not recorded.
    unrecorded: Vec<(u32, String)>,
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
        counters: PerCpuArray<MapData, CountersPod>,
        per_cpu: PerCpuArray<MapData, PerCpuPod>,
        program: aya::programs::ProgramFd,
        unrecorded: Vec<(u32, String)>,
    ) -> Counters {
        Counters { counters, per_cpu, program, unrecorded }
    }

    pub fn read(&self) -> Result<Reading, aya::maps::MapError> {
        let mut sum = Raw::default();
        for cpu in self.counters.get(&0, 0)?.iter() {
            sum.matched += cpu.0.matched;
            sum.emitted += cpu.0.emitted;
            sum.lost_ring += cpu.0.lost_ring;
        }
        let mut by_reason = [0; REASONS];
        for cpu in self.per_cpu.get(&0, 0)?.iter() {
            by_reason.iter_mut().zip(&cpu.0.seen).for_each(|(sum, seen)| *sum += seen);
        }
        let not_recorded = self.unrecorded.iter().filter_map(|(reason, name)| {
            let count = *by_reason.get(*reason as usize)?;
            (count > 0).then(|| (name.clone(), count))
        });
        Ok(Reading {
            totals: KernelTotals {
                seen: by_reason.iter().sum::<u64>().max(sum.matched),
                matched: sum.matched,
                emitted: sum.emitted,
                folded: 0,
                lost: sum.lost_ring,
                recursion_misses: recursion_misses(self.program.as_fd().as_raw_fd()),
            },
            not_recorded: not_recorded.collect(),
        })
    }
}

/// `bpf_prog_info.recursion_misses` (from 5.12): runs that were skipped because the program interrupted itself. 0 where the
/// kernel doesn't tell.
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
