//! Drops on their way through the pipeline: decoded, named, and, where a name is missing, waiting for it.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::connections::Origin;
use super::opener::Opener;
use super::{Pipeline, aggregate::RecordBudget};
use crate::inventory::Inventory;
use crate::kernel::KernelDrop;
use crate::model::packet::{Granularity, Packet, PacketCount, PacketError};
use crate::model::{Cause, DropFacts, PolicyRelevance};
use crate::sink::SinkError;

/// How long an endpoint inside the pod network without a known owner may wait for its name.
pub(super) const NAMING_TIME: Duration = Duration::from_secs(3);
/// Packets that may wait at once; more are written without names.
const MAX_PENDING: usize = 10_000;
/// Network namespaces remembered as having conntrack.
const MAX_NETNS: usize = 4096;

/// A decoded drop.
pub(super) struct PendingDrop {
    pub packet: Packet,
    pub opener: Opener,
    pub packet_count: PacketCount,
    pub facts: DropFacts,
    pub origin: Origin,
    deadline: Instant,
    /// The drop waits not for a name but for a change that would alter the decision. It is looked at once, at the deadline.
    pub waits_for_news: bool,
    /// A look-up of the endpoints without a name was requested.
    pub looked_up: bool,
}

impl PendingDrop {
    pub fn packets(&self) -> u64 {
        self.packet_count.packets()
    }
}

impl Pipeline {
    /// Returns true if conntrack is known to be at work in this network namespace.
    pub(super) fn conntrack_active(&self, netns: Option<u32>, inventory: Option<&Inventory>) -> bool {
        netns.is_some_and(|netns| self.tracked_netns.contains(&netns))
            || inventory
                .is_some_and(|inventory| inventory.is_of(netns) && (inventory.conntrack || inventory.ruleset.conntrack))
    }

    /// Takes in a drop of the kernel's side. Counts it and returns `None` if it gets no record.
    pub(super) fn accept(&mut self, drop: KernelDrop) -> Option<PendingDrop> {
        let KernelDrop { packet, iif, facts, packet_count } = drop;
        let packets = packet_count.packets();
        if facts.site.relevance == PolicyRelevance::Noise {
            self.accounting.filter(Cause::NotPolicy, packets);
            return None;
        }
        let mut packet = match packet {
            Ok(packet) => packet,
            // ARP, LLDP and the like: no policy covers them.
            Err(PacketError::NotIp) => {
                self.accounting.filter(Cause::NotPolicy, packets);
                return None;
            }
            Err(error) => {
                let reason = facts.reason.as_deref();
                tracing::debug!(reason, kind = error.kind(), "a dropped packet cannot be decoded");
                self.accounting.lost_undecoded += packets;
                self.output.metrics().error("packet", error.kind());
                return None;
            }
        };
        if let Some(flows) = &mut self.flows {
            flows.note_drop(&packet, self.now);
        }
        if packet_count.packets() > 1 && packet.conntrack.is_none() {
            // Errors about several connections are counted together.
            packet.headers.quoted = None;
        }
        // Before the source's port goes: the ports are evidence.
        let opener = self.opener(&packet);
        if packet_count.granularity != Granularity::Flow {
            packet.headers.source_port = None;
        }
        if let (Some(netns), true) = (facts.netns, packet.conntrack.is_some())
            && self.tracked_netns.len() < MAX_NETNS
        {
            self.tracked_netns.insert(netns);
        }
        let origin = Origin { iif, netns: facts.netns };
        let deadline = self.now + NAMING_TIME;
        Some(PendingDrop {
            packet,
            opener,
            packet_count,
            facts,
            origin,
            deadline,
            waits_for_news: false,
            looked_up: false,
        })
    }

    pub(super) fn may_wait(&self, drop: &PendingDrop) -> bool {
        self.pending.len() < MAX_PENDING
            && matches!(drop.facts.site.relevance, PolicyRelevance::Likely | PolicyRelevance::Possible)
    }

    /// Returns the time of the last packet that the drop stands for.
    pub(super) fn last_time(&self, drop: &PendingDrop) -> Timestamp {
        self.clock.wall(drop.packet_count.last.max(drop.packet.time))
    }

    /// Looks again at the drops that wait: their names may be known by now, or their time is over. `all` waits no longer.
    pub fn revisit(&mut self, all: bool) -> Result<(), SinkError> {
        let now = Instant::now();
        self.now = now;
        for drop in std::mem::take(&mut self.pending) {
            let may_wait = !all && drop.deadline > now;
            let waits = if drop.waits_for_news && may_wait { Some(drop) } else { self.advance(drop, may_wait)? };
            self.pending.extend(waits);
        }
        Ok(())
    }

    /// Writes the aggregates of drops above the record budget.
    pub fn end_aggregates(&mut self) -> Result<(), SinkError> {
        for (body, time, packets) in self.budget.iter_mut().flat_map(RecordBudget::take) {
            self.accounting.held -= packets;
            // Packets of several flows within this agent's own window: no other agent has the same record.
            self.output.write(body, None, time, packets)?;
        }
        Ok(())
    }
}
