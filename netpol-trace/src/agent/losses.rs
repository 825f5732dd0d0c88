//! The counters of lost packets and connections: one table from which loss records and the metric come.

use std::collections::BTreeMap;

use jiff::Timestamp;
use netpol_trace_common::tc::FlowCounters;

use crate::model::{KernelTotals, LossKind, LossReason, LossStage};

/// The counters at one time.
#[derive(Debug, Default, Clone, Copy)]
pub struct LossCounts {
    /// `None` while the kernel's counters cannot be read.
    pub kernel: Option<KernelTotals>,
    /// `None` without the tc hook and while its counters cannot be read.
    pub tc: Option<FlowCounters>,
    /// Packets for which the agent's queue had no room.
    pub queue: u64,
    /// Connection events for which it had none.
    pub connections_queue: u64,
    /// Packets whose headers cannot be decoded.
    pub undecoded: u64,
}

/// Where one kind of loss is counted. The function returns `None` while the counter cannot be read.
type Counter = (LossKind, fn(&LossCounts) -> Option<u64>);

const COUNTERS: [Counter; 9] = [
    (LossKind::RING_FULL, |counts| Some(counts.kernel?.lost)),
    (LossKind::RECURSION, |counts| Some(counts.kernel?.recursion_misses)),
    (LossKind::QUEUE_FULL, |counts| Some(counts.queue)),
    (LossKind::UNREADABLE, |counts| Some(counts.undecoded)),
    (LossKind::CONNECTIONS_FULL, |counts| Some(counts.tc?.lost_full)),
    (LossKind::CONNECTION_REFUSED, |counts| Some(counts.tc?.lost_insert)),
    (LossKind::CONNECTIONS_RING_FULL, |counts| Some(counts.tc?.lost_ring)),
    (LossKind::ANSWERS_RING_FULL, |counts| Some(counts.tc?.answers_lost)),
    (LossKind::CONNECTIONS_QUEUE_FULL, |counts| Some(counts.connections_queue)),
];

/// The losses that have been declared.
#[derive(Debug, Default)]
pub struct DeclaredLosses {
    totals: [u64; COUNTERS.len()],
    last_look: Option<Timestamp>,
}

/// What got lost since the last look.
#[derive(Debug)]
pub struct NewLosses {
    /// The time of the last look.
    pub since: Timestamp,
    pub losses: Vec<(LossKind, u64)>,
}

impl NewLosses {
    /// Returns true if the agent may have missed drops, so that the absence of a drop proves nothing.
    pub fn may_hide_drops(&self) -> bool {
        const HIDE: [LossKind; 3] = [LossKind::RING_FULL, LossKind::RECURSION, LossKind::QUEUE_FULL];
        self.losses.iter().any(|(kind, _)| HIDE.contains(kind))
    }
}

impl DeclaredLosses {
    /// Returns the losses since the last look, which the caller declares.
    pub fn look(&mut self, counts: &LossCounts, now: Timestamp) -> NewLosses {
        let since = self.last_look.replace(now).unwrap_or(now);
        let mut losses = Vec::new();
        for ((kind, total), declared) in COUNTERS.iter().zip(&mut self.totals) {
            let Some(total) = total(counts) else { continue };
            let count = total.saturating_sub(std::mem::replace(declared, total));
            if count > 0 {
                losses.push((*kind, count));
            }
        }
        NewLosses { since, losses }
    }

    /// Returns how many losses of a kind have been declared.
    pub fn declared(&self, kind: LossKind) -> u64 {
        let counters = COUNTERS.iter().zip(&self.totals);
        counters.filter(|((counted, _), _)| *counted == kind).map(|(_, total)| total).sum()
    }

    /// Returns the samples of the metric: sums by stage and reason, zeros included.
    pub fn by_reason(&self) -> BTreeMap<(LossStage, LossReason), u64> {
        let mut sums = BTreeMap::new();
        for ((kind, _), total) in COUNTERS.iter().zip(&self.totals) {
            *sums.entry((kind.stage, kind.reason)).or_default() += total;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_declared_once() {
        let mut declared = DeclaredLosses::default();
        let tc = FlowCounters { lost_ring: 2, answers_lost: 3, ..FlowCounters::default() };
        let kernel = KernelTotals { lost: 5, ..KernelTotals::default() };
        let counts = LossCounts { kernel: Some(kernel), tc: Some(tc), undecoded: 1, ..LossCounts::default() };
        let first = declared.look(&counts, Timestamp::UNIX_EPOCH);
        let expected = [
            (LossKind::RING_FULL, 5),
            (LossKind::UNREADABLE, 1),
            (LossKind::CONNECTIONS_RING_FULL, 2),
            (LossKind::ANSWERS_RING_FULL, 3),
        ];
        assert_eq!(first.losses, expected);
        assert!(first.may_hide_drops());
        // Counters that cannot be read keep what was declared.
        let later = LossCounts { undecoded: 4, ..LossCounts::default() };
        let second = declared.look(&later, Timestamp::UNIX_EPOCH);
        assert_eq!(second.losses, [(LossKind::UNREADABLE, 3)]);
        assert!(!second.may_hide_drops());
        assert!(declared.look(&counts, Timestamp::UNIX_EPOCH).losses.is_empty());
        assert_eq!(declared.declared(LossKind::RING_FULL), 5);
        assert_eq!(declared.by_reason()[&(LossStage::KernelRing, LossReason::ConnectionsRingFull)], 5);
    }

    /// A kind whose counter is missing here would never be declared.
    #[test]
    fn every_kind_before_the_sinks_has_its_counter() {
        let counted: Vec<LossKind> = COUNTERS.iter().map(|(kind, _)| *kind).collect();
        for kind in LossKind::ALL.iter().filter(|kind| kind.in_metrics && kind.stage != LossStage::Sink) {
            assert!(counted.contains(kind), "{kind:?}");
        }
    }
}
