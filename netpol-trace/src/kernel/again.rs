//! The program's copy. The kernel does not run a program on a CPU where it is running already: a drop in a softirq that
//! interrupts the program is missed. That takes drops of the node's own packets (OUTPUT) at a high rate; then the copy is
//! attached behind the program, and taken off when it was quiet for a while, since it costs every freed packet a look.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::MapData;
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, ProgramError};

use netpol_trace_common::{PER_CPU_ENTRIES, PerCpu};

use super::attach::{program, program_error, types};
use super::bpf::Grace;
use super::counters::Counters;
use super::mapping::Mapping;
use super::{KernelError, btf};

/// How often to look, at most: a flood begins with a record that wakes the reader, which comes by every few milliseconds then.
const EVERY: Duration = Duration::from_millis(10);
/// Missed drops between two looks from which on the copy is worth its cost.
const OFTEN: u64 = 5;
/// Loading it takes the verifier some 80 ms, in which the ring is not read, and some memory: when the agent's start is over, and
/// at an idle moment, rather than when drops interrupt each other and each moment counts.
const LATER: Duration = Duration::from_secs(2);
/// Without so many for so long, it is not.
const QUIET: Duration = Duration::from_secs(60);

/// Whether it is attached, and whether it should be.
#[derive(Debug)]
pub struct Again {
    /// The copy of the program in use; `None` where there is none, or it can't be attached.
    name: Option<&'static str>,
    loaded: bool,
    link: Option<FdLink>,
    marks: Option<Marks>,
    begun: Instant,
    looked: Instant,
    /// Missed until then; `None`: not looked yet. A program that was taken over has missed some before.
    missed: Option<u64>,
    /// When drops were missed often.
    needed: Instant,
}

/// Has the program leave a mark of each packet, by which the copy knows that it ran.
#[derive(Debug)]
pub(super) struct Marks {
    per_cpu: Mapping<PerCpu>,
    grace: Grace,
    inner: OwnedFd,
}

impl Marks {
    /// `per_cpu`: the map of [`PerCpu`], for so many CPUs; `inner`: any array map, to wait with.
    pub(super) fn new(per_cpu: &MapData, cpus: u32, inner: BorrowedFd<'_>) -> io::Result<Marks> {
        let per_cpu = Mapping::new(per_cpu, (cpus * PER_CPU_ENTRIES) as usize)?;
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
        Again { name, loaded: false, link: None, marks, begun: now, looked: now, missed: None, needed: now }
    }

    /// Attaches or detaches, as the misses since the last look are. `idle`: no drops come just now. Says whether it took much
    /// memory for a moment.
    pub(super) fn look(&mut self, ebpf: &mut Ebpf, counters: &Counters, idle: bool) -> bool {
        let (Some(name), Some(marks)) = (self.name, &self.marks) else { return false };
        if self.looked.elapsed() < EVERY {
            return false;
        }
        let now = Instant::now();
        let missed = counters.missed_runs();
        let before = self.missed.replace(missed).unwrap_or(missed);
        let often = missed.saturating_sub(before) >= OFTEN;
        self.looked = now;
        let load_it = !self.loaded && (often || idle && now.duration_since(self.begun) > LATER);
        if load_it {
            self.loaded = true;
            // On a thread of its own: what is freed of the kernel's types would lie about in this one's heap.
            let loaded = std::thread::scope(|scope| scope.spawn(|| load(ebpf, name)).join());
            if let Err(error) = loaded.unwrap_or_else(|_| Err(KernelError::Object("its loading panicked".into()))) {
                tracing::warn!(%error, "drops that interrupt others are missed: they are declared as losses");
                self.name = None;
                return true;
            }
        }
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
        load_it
    }
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<(), KernelError> {
    let blob = std::fs::read(super::BTF_PATH).map_err(KernelError::NoBtf)?;
    let btf = types(&btf::Btf::parse(&blob)?.only(&super::TRACEPOINTS, &[])?)?;
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    program.load("kfree_skb", &btf).map_err(program_error)
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
