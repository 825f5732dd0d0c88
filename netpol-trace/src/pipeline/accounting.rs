//! Packet accounting of the agent: every packet that it reads is written, held or lost, and is counted where that happens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::model::{AgentTotals, Cause};
use crate::sink::queue::SinkCounts;

/// Counters of the reader thread. They are shared because the reader runs while the worker is busy or blocked.
#[derive(Debug, Default)]
pub struct Intake {
    /// Packets taken from the ring.
    pub read: AtomicU64,
    /// Packets handed to the worker that it has not taken yet.
    pub queued: AtomicU64,
    /// Packets for which the queue had no room.
    pub lost: AtomicU64,
    /// Connection events for which the queue had no room. These are not packets, so packet accounting leaves them out.
    pub lost_connections: AtomicU64,
    /// Peak fill of the ring buffer in bytes since this was last taken.
    pub ring_peak: AtomicU64,
    /// Set when a policy changed: the reader then swaps the kernel's maps before their window ends.
    pub swap_requested: AtomicBool,
}

/// Counters of the worker thread.
#[derive(Debug, Default)]
pub struct Accounting {
    /// Packets left off the output because of their cause.
    pub filtered: u64,
    /// Packets that wait for a name.
    pub held: u64,
    /// Packets whose headers cannot be decoded. They get no record.
    pub lost_undecoded: u64,
    pub causes: BTreeMap<Cause, u64>,
}

impl Accounting {
    /// Counts packets that get no record because of their cause or the config file.
    pub fn filter(&mut self, cause: Cause, packets: u64) {
        self.filtered += packets;
        self.count_cause(cause, packets);
    }

    pub fn count_cause(&mut self, cause: Cause, packets: u64) {
        *self.causes.entry(cause).or_default() += packets;
    }

    /// Returns the totals. `primary` holds the counts of the primary sink.
    pub fn totals(&self, intake: &Intake, primary: SinkCounts) -> AgentTotals {
        // Queued before read: a packet that moves in between is then counted as read and not as held, never the other way.
        let queued = intake.queued.load(Ordering::Acquire);
        AgentTotals {
            read: intake.read.load(Ordering::Acquire),
            written: self.filtered + primary.written,
            filtered: self.filtered,
            held: self.held + queued + primary.held,
            lost: primary.lost + self.lost_undecoded + intake.lost.load(Ordering::Acquire),
        }
    }
}
