//! The stages, called in order: the map of the program.
//!
//! ```text
//! kernel event -> packet -> flow (who) -> decision (why) -> record -> sink
//! ```

pub mod accounting;
pub mod aggregate;
pub mod build;
pub mod connections;
pub(crate) mod decide;
pub mod enrich;
pub mod filter;
pub mod fingerprints;
mod identity;
pub mod opener;
mod pending;
mod policy_change;
mod setup;
mod unanswered;
mod verdict_cache;

use std::time::Instant;

use aggregate::{PacketSums, WorkloadKey};
use build::drop_body;
use decide::{DropContext, EvalContext, NodeContext, decide};
use enrich::{Flow, Moments};
use identity::confirm;
use pending::PendingDrop;
pub use setup::Pipeline;
use verdict_cache::CacheKey;

use crate::cluster::Index;
use crate::inventory::InventoryWatcher;
use crate::kernel::KernelDrop;
use crate::model::Cause;
use crate::pipeline::filter::EndpointPair;
use crate::record::Body;
use crate::sink::SinkError;

impl Pipeline {
    /// Takes a batch of drops through all stages.
    pub fn handle(&mut self, drops: impl IntoIterator<Item = KernelDrop>) -> Result<(), SinkError> {
        self.now = Instant::now();
        for drop in drops {
            let Some(drop) = self.accept(drop) else { continue };
            let may_wait = self.may_wait(&drop);
            self.accounting.held += drop.packets();
            if let Some(drop) = self.advance(drop, may_wait)? {
                self.pending.push_back(drop);
            }
        }
        Ok(())
    }

    /// Names both endpoints, decides and writes. Returns the drop if it should wait and may.
    fn advance(&mut self, mut drop: PendingDrop, may_wait: bool) -> Result<Option<PendingDrop>, SinkError> {
        let cluster = self.cluster.clone();
        let index = cluster.read();
        let time = self.clock.wall(drop.packet.time);
        let moments = Moments::of(&index, &drop.packet, time, self.last_time(&drop));
        let mut flow = moments.name(&drop.packet, drop.opener);
        let look_up = !std::mem::replace(&mut drop.looked_up, true);
        confirm(self.lookups.as_ref(), &mut flow, &index, time, look_up);
        if may_wait && flow.may_be_named_later() {
            return Ok(Some(drop));
        }
        if may_wait && flow.may_have_left() {
            drop.waits_for_news = true;
            return Ok(Some(drop));
        }
        let cache_key = if moments.are_current() { CacheKey::of(&flow) } else { None };
        if !self.finish(&index, &drop, &flow, cache_key, may_wait)? {
            drop.waits_for_news = true;
            return Ok(Some(drop));
        }
        self.accounting.held -= drop.packets();
        Ok(None)
    }

    /// Decides about a named flow and writes its record. Returns false if the drop should wait and may.
    ///
    /// Evidence is rendered last: under a flood most packets get no record of their own.
    fn finish(
        &mut self,
        index: &Index,
        drop: &PendingDrop,
        flow: &Flow<'_>,
        cache_key: Option<CacheKey>,
        may_wait: bool,
    ) -> Result<bool, SinkError> {
        let (packet, facts) = (&drop.packet, &drop.facts);
        let packets = drop.packets();
        let (time, last) = (self.clock.wall(packet.time), self.last_time(drop));
        let inventory = self.inventory.as_ref().and_then(InventoryWatcher::current);
        let node = NodeContext {
            name: self.node.as_deref(),
            inventory: inventory.as_deref().filter(|inventory| inventory.is_of(facts.netns)),
            conntrack_active: self.conntrack_active(facts.netns, inventory.as_deref()),
        };
        let context = DropContext::new(flow, packet, facts, node, index);
        let eval = EvalContext { index, options: &self.options, time };
        let cached = cache_key.and_then(|key| self.verdicts.get(&key, index, time));

        let decision = decide(flow, &context, eval, cached);
        let flow = &*decision.flow(flow);
        // An enforcer may know a new policy before the agent does.
        if decision.cause == Cause::Disagrees && may_wait {
            return Ok(false);
        }
        let admitted = self.configured.settings.admits(Some(decision.cause), &EndpointPair::of_flow(flow));
        if !admitted || (!self.all_drops && !decision.cause.is_default()) {
            self.accounting.filter(decision.cause, packets);
            return Ok(true);
        }
        self.accounting.count_cause(decision.cause, packets);

        let mut aggregate = None;
        if let Some(budget) = self.budget.as_mut()
            && !budget.spend(self.now)
        {
            let key = WorkloadKey::of(flow, packet, context.site, facts.netns, decision.cause, decision.direction);
            let sums = PacketSums::of(packet, &drop.packet_count, time, last);
            self.accounting.held += packets;
            match budget.add(key, &sums) {
                None => return Ok(true),
                Some(key) => aggregate = Some((key, sums)),
            }
        }
        let cache = cache_key.map(|key| (&mut self.verdicts, key));
        let rendered = decision.render(flow, &context, eval, &self.cluster.stale(), cache);
        let mut record = drop_body(packet, facts, context.site, flow, rendered);
        record.counts(packet, &drop.packet_count, last);
        if let Some(flows) = &mut self.flows {
            flows.annotate(&mut record, packet, drop.origin, index, self.now);
        }
        let mut body = Body::Drop(Box::new(record));
        self.configured.settings.redact(&mut body);
        match (aggregate, body, &mut self.budget) {
            (Some((key, sums)), Body::Drop(record), Some(budget)) => budget.begin(key, record, &sums),
            (_, body, _) => {
                let fingerprint = self.fingerprints.drop(packet, facts, drop.origin, &drop.packet_count);
                self.output.write(body, Some(fingerprint), time, packets)?;
            }
        }
        Ok(true)
    }
}
