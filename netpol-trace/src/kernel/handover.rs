//! Handover from one agent to the next with `--survive-restart`. The kernel keeps the counters, the ring and the counting maps; this page
//! records how far the agent has got with them. The agent stores into a page of a pinned map, so that the numbers survive the process
//! however it ends.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use netpol_trace_common::aggregate::HandoverPage;

use super::mapping::Mapping;

/// The page, mapped while the agent runs.
#[derive(Debug)]
pub struct Handover(Mapping<HandoverPage>);

impl Handover {
    pub(super) fn new(map: &MapData) -> io::Result<Handover> {
        Mapping::new(map, 1).map(Handover)
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

    /// The kernel's losses that are declared.
    pub fn lost(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.0.word(|raw| unsafe { &raw mut (*raw).lost })
    }

    /// Packets of records that were written.
    pub fn written(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.0.word(|raw| unsafe { &raw mut (*raw).written })
    }

    /// Packets that get no record, and packets whose loss is declared.
    pub fn left_out(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.0.word(|raw| unsafe { &raw mut (*raw).left_out })
    }

    /// Records that every packet read from the kernel is written, left out or declared.
    pub fn commit(&self) {
        let taken = self.emitted().load(Ordering::Acquire) + self.aggregated().load(Ordering::Acquire);
        self.left_out().store(taken.saturating_sub(self.written().load(Ordering::Acquire)), Ordering::Release);
    }

    /// Takes over from the earlier agent. Returns the packets that it read from the kernel and did not write: this agent declares their loss.
    pub(super) fn take_over(&self) -> u64 {
        let taken = self.emitted().load(Ordering::Acquire) + self.aggregated().load(Ordering::Acquire);
        let done = self.written().swap(taken, Ordering::AcqRel) + self.left_out().swap(0, Ordering::AcqRel);
        taken.saturating_sub(done)
    }
}
