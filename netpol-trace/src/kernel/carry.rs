//! What one run leaves to the next in pinned maps (`--survive-restart`): the counters, the ring and the folds are the kernel's own; here is
//! how far the agent has come with them. Plain stores into a page that the kernel keeps: what was stored survives the process,
//! however that ends.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use netpol_trace_common::fold::Carry as Raw;

use super::mapping::Mapping;

/// The page, mapped for as long as the agent runs.
#[derive(Debug)]
pub struct Carry(Mapping<Raw>);

impl Carry {
    pub(super) fn new(map: &MapData) -> io::Result<Carry> {
        Mapping::new(map, 1).map(Carry)
    }

    /// Packets of events that were read from the ring.
    pub fn emitted(&self) -> &AtomicU64 {
        // SAFETY: only the address is taken.
        self.0.word(|raw| unsafe { &raw mut (*raw).emitted })
    }

    /// Packets of counts that were taken out of the maps.
    pub fn aggregated(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.0.word(|raw| unsafe { &raw mut (*raw).aggregated })
    }

    /// Of the kernel's losses, what is declared.
    pub fn lost(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.0.word(|raw| unsafe { &raw mut (*raw).lost })
    }

    /// Packets in lines that were written.
    pub fn written(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.0.word(|raw| unsafe { &raw mut (*raw).written })
    }

    /// Packets that get no line, and those whose loss is declared.
    pub fn left_out(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.0.word(|raw| unsafe { &raw mut (*raw).left_out })
    }

    /// Notes that nothing is open of what was taken out of the kernel.
    pub fn settle(&self) {
        let taken = self.emitted().load(Ordering::Acquire) + self.aggregated().load(Ordering::Acquire);
        self.left_out().store(taken.saturating_sub(self.written().load(Ordering::Acquire)), Ordering::Release);
    }

    /// Takes over from the run before: packets that it had taken out of the kernel and that ended with it. They are this run's to
    /// declare, and done with.
    pub(super) fn take_over(&self) -> u64 {
        let taken = self.emitted().load(Ordering::Acquire) + self.aggregated().load(Ordering::Acquire);
        let done = self.written().swap(taken, Ordering::AcqRel) + self.left_out().swap(0, Ordering::AcqRel);
        taken.saturating_sub(done)
    }
}
