//! The program's copy. The kernel does not run a program on a CPU where it is running already: a drop in a softirq that
//! interrupts the program is missed. That takes drops of the node's own packets (OUTPUT) at a high rate; then the copy is
//! attached behind the program, and taken off when it was quiet for a while, since it costs every freed packet a look.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf};

use netpol_trace_common::PerCpu;

use super::KernelError;
use super::attach::{program, program_error};
use super::bpf::Grace;
use super::counters::Counters;
use super::hook::TRACEPOINT;
use super::mapping::Mapping;

/// How often to look, at most: a flood begins with a record that wakes the reader, which comes by every few milliseconds then.
const EVERY: Duration = Duration::from_millis(10);
/// Missed drops between two looks from which on the copy is worth its cost.
const OFTEN: u64 = 5;
/// Without so many for so long, it is not.
const QUIET: Duration = Duration::from_secs(60);

/// Whether it is attached, and whether it should be.
#[derive(Debug)]
pub struct Again {
    /// The copy of the program in use; `None` where there is none, or it can't be attached.
    name: Option<&'static str>,
    link: Option<FdLink>,
    marks: Option<Marks>,
    looked: Instant,
    /// Missed until then; `None`: not looked yet. A program that was taken over has missed some before.
    missed: Option<u64>,
    /// When drops were missed often.
    needed: Instant,
}

/// Has the program leave a mark of each packet, by which the copy knows that it ran.
#[derive(Debug)]
pub(super) struct Marks {
    per_cpu: Arc<Mapping<PerCpu>>,
    grace: Grace,
    inner: OwnedFd,
}

impl Marks {
    /// `inner`: any array map, to wait with.
    pub(super) fn new(per_cpu: Arc<Mapping<PerCpu>>, inner: BorrowedFd<'_>) -> io::Result<Marks> {
        let (grace, inner) = (Grace::new(inner)?, inner.try_clone_to_owned()?);
        let marks = Marks { per_cpu, grace, inner };
        // Pinned maps may say otherwise.
        marks.leave(false);
        Ok(marks)
    }

    fn leave(&self, leave: bool) {
        // SAFETY: only the address is taken.
        let watched = self.per_cpu.words(|entry| unsafe { &raw mut (*entry).watched });
        watched.for_each(|watched| watched.store(leave.into(), Ordering::Release));
    }
}

impl Again {
    /// `name`: the copy of the program in use.
    pub(super) fn new(name: Option<&'static str>, marks: Option<Marks>) -> Again {
        let now = Instant::now();
        Again { name, link: None, marks, looked: now, missed: None, needed: now }
    }

    /// Attaches or detaches, as the misses since the last look are.
    pub(super) fn look(&mut self, ebpf: &mut Ebpf, counters: &Counters) {
        let (Some(name), Some(marks)) = (self.name, &self.marks) else { return };
        if self.looked.elapsed() < EVERY {
            return;
        }
        let now = Instant::now();
        let missed = counters.missed_runs();
        let before = self.missed.replace(missed).unwrap_or(missed);
        let often = missed.saturating_sub(before) >= OFTEN;
        self.looked = now;
        if often {
            self.needed = now;
        }
        match &self.link {
            None if often => match attach(ebpf, name, marks) {
                Ok(link) => {
                    tracing::info!(
                        missed,
                        "drops interrupt each other: a second program sees those that the first misses"
                    );
                    self.link = Some(link);
                }
                Err(error) => {
                    tracing::warn!(%error, "drops that interrupt others are missed: they are declared as losses");
                    marks.leave(false);
                    self.name = None;
                }
            },
            Some(_) if now.duration_since(self.needed) > QUIET => {
                tracing::info!("drops no longer interrupt each other: the second program is taken off");
                self.link = None;
            }
            // By now it runs no more: it would count twice what has no mark.
            None => marks.leave(false),
            Some(_) => {}
        }
    }
}

/// Loads the copy unless it was loaded with its program, so that it need only be attached: meanwhile drops are missed.
pub(super) fn load(ebpf: &mut Ebpf, name: &str, btf: &Btf) -> Result<(), KernelError> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    if program.fd().is_ok() {
        return Ok(());
    }
    program.load(TRACEPOINT, btf).map_err(program_error)
}

/// Behind the program: those of a tracepoint run in the order in which they were attached.
fn attach(ebpf: &mut Ebpf, name: &str, marks: &Marks) -> Result<FdLink, KernelError> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    let attach = |program: &mut BtfTracePoint| -> Result<FdLink, ProgramError> {
        // The copy takes a packet without a mark for missed: first the last run must have ended that left none.
        marks.leave(true);
        marks.grace.wait(marks.inner.as_fd()).map_err(ProgramError::IOError)?;
        let id = program.attach()?;
        Ok(program.take_link(id)?.into())
    };
    attach(program).map_err(program_error)
}
