//! The agent's side of the books: every packet that was read is written, held or lost, and counted where that happens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::model::{AgentTotals, Cause};
use crate::sink::queue::Counts;

/// What the reader thread counts: shared, because it runs while the worker is busy or blocked.
#[derive(Debug, Default)]
pub struct Intake {
    /// Packets taken from the ring.
    pub read: AtomicU64,
    /// Packets handed to the worker that it has not taken yet.
    pub queued: AtomicU64,
    /// Packets for which the queue had no room.
    pub lost: AtomicU64,
    /// Records of connections for which the queue had no room: not packets, so outside the books.
    pub lost_flows: AtomicU64,
    /// Octets found in the ring at one reading: the most since this was last taken.
    pub ring_peak: AtomicU64,
    /// Asks for the counts before their window is over: what they are judged by has changed.
    pub turn: AtomicBool,
}

/// What the worker counts.
#[derive(Debug, Default)]
pub struct Books {
    /// Packets left off the output because of their cause.
    pub filtered: u64,
    /// Packets that wait for a name.
    pub held: u64,
    /// Packets that are not IP or can't be read: there is no record to make of them.
    pub lost_undecoded: u64,
    pub causes: BTreeMap<Cause, u64>,
}

impl Books {
    /// The books, `ledger` being what the first sink counts.
    pub fn totals(&self, intake: &Intake, ledger: Counts) -> AgentTotals {
        // Queued before read: a packet that moves in between is then counted as read and not as held, never the other way.
        let queued = intake.queued.load(Ordering::Acquire);
        AgentTotals {
            read: intake.read.load(Ordering::Acquire),
            written: self.filtered + ledger.written,
            filtered: self.filtered,
            held: self.held + queued + ledger.held,
            lost: ledger.lost + self.lost_undecoded + intake.lost.load(Ordering::Acquire),
        }
    }
}
