//! The program's copy. The kernel does not run a program on a CPU where it is running already: a drop in a softirq that
//! interrupts the program is missed. That takes drops of the node's own packets (OUTPUT) at a high rate; then the copy is
//! attached behind the program, and taken off when it was quiet for a while, since it costs every freed packet a look.

use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, ProgramError};

use super::attach::{program, program_error, types};
use super::counters::Counters;
use super::{KernelError, btf};

/// How often to look.
const EVERY: Duration = Duration::from_millis(200);
/// Missed drops between two looks from which on the copy is worth its cost.
const OFTEN: u64 = 20;
/// Without so many for so long, it is not.
const QUIET: Duration = Duration::from_secs(60);

/// Whether it is attached, and whether it should be.
#[derive(Debug)]
pub struct Again {
    /// The copy of the program in use; `None` where there is none, or it can't be attached.
    name: Option<&'static str>,
    link: Option<FdLink>,
    looked: Instant,
    /// Missed until then; `None`: not looked yet. A program that was taken over has missed some before.
    missed: Option<u64>,
    /// When drops were missed often.
    needed: Instant,
}

impl Again {
    /// `name`: the copy of the program in use.
    pub(super) fn new(name: Option<&'static str>) -> Again {
        let now = Instant::now();
        Again { name, link: None, looked: now, missed: None, needed: now }
    }

    /// Attaches or detaches, as the misses since the last look are.
    pub(super) fn look(&mut self, ebpf: &mut Ebpf, counters: &Counters) {
        let Some(name) = self.name.filter(|_| self.looked.elapsed() >= EVERY) else { return };
        let now = Instant::now();
        let missed = counters.missed_runs();
        let before = self.missed.replace(missed).unwrap_or(missed);
        let often = missed.saturating_sub(before) >= OFTEN;
        self.looked = now;
        if often {
            self.needed = now;
        }
        match &self.link {
            None if often => match attach(ebpf, name) {
                Ok(link) => {
                    tracing::info!(
                        missed,
                        "drops interrupt each other: a second program sees those that the first misses"
                    );
                    self.link = Some(link);
                }
                Err(error) => {
                    tracing::warn!(%error, "drops that interrupt others are missed: they are declared as losses");
                    self.name = None;
                }
            },
            Some(_) if now.duration_since(self.needed) > QUIET => {
                tracing::info!("drops no longer interrupt each other: the second program is taken off");
                self.link = None;
                let loaded: Result<&mut BtfTracePoint, _> = program(ebpf, name);
                if let Err(error) = loaded.map_or(Ok(()), BtfTracePoint::unload) {
                    tracing::debug!(%error, "the second program stays loaded");
                }
            }
            _ => {}
        }
    }
}

/// Behind the program: those of a tracepoint run in the order in which they were attached.
fn attach(ebpf: &mut Ebpf, name: &str) -> Result<FdLink, KernelError> {
    let blob = std::fs::read(super::BTF_PATH).map_err(KernelError::NoBtf)?;
    let btf = types(&btf::Btf::parse(&blob)?.only(&super::TRACEPOINTS, &[])?)?;
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    let attach = |program: &mut BtfTracePoint| -> Result<FdLink, ProgramError> {
        if program.fd().is_err() {
            program.load("kfree_skb", &btf)?;
        }
        let id = program.attach()?;
        Ok(program.take_link(id)?.into())
    };
    attach(program).map_err(program_error)
}
