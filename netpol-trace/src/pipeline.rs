//! The stages, called in order: the map of the program.
//!
//! ```text
//! kernel event ─> packet ─> enriched flow ─> verdict ─> record ─> sink
//! ```

pub mod budget;
mod doubt;
pub mod fingerprints;
mod judge;
mod memo;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::books::{Books, Intake};
use crate::cause::{self, Circumstances};
use crate::changes;
use crate::cluster::api::Lookups;
use crate::cluster::index::Moment;
use crate::cluster::{Cluster, Index};
use crate::config::{Ends, live};
use crate::enrich::{self, Flow};
use crate::flows::{self, Flows, Origin};
use crate::inventory::{Inventory, Watcher};
use crate::kernel::RawDrop;
use crate::kernel::clock::Clock;
use crate::kernel::tc::View;
use crate::output::Output;
use crate::packet::{self, Candidate, Packet, PacketError, Repeats, Sameness};
use crate::record::build::drop_body;
use crate::record::{Body, Cause, Loss, LossStage};
use crate::sink::SinkError;
use crate::verdict;
use budget::{Budget, Key, Sums};
use doubt::doubt;
use fingerprints::Fingerprints;
use judge::{Law, judge};
use memo::{Memo, Subject};

/// How long an end inside the pod network without a known owner may wait for its name.
const NAMING_TIME: Duration = Duration::from_secs(3);
/// Packets that may wait at once; more go out unnamed.
const MAX_HELD: usize = 10_000;
/// Network namespaces remembered as conntrack's.
const MAX_NETNS: usize = 4096;

pub struct Pipeline {
    cluster: Cluster,
    node: Option<String>,
    all_drops: bool,
    options: verdict::Options,
    memo: Memo,
    pub clock: Clock,
    /// Of the last look at the clock: once for many drops.
    now: Instant,
    pub books: Books,
    pub intake: Arc<Intake>,
    held: VecDeque<Held>,
    /// Unanswered connections that wait for the name of an end.
    silent: VecDeque<Silent>,
    tracked_netns: HashSet<u32>,
    /// With the tc hook.
    pub flows: Option<Flows<View>>,
    inventory: Option<Watcher>,
    /// With the API server as source.
    pub lookups: Option<Lookups>,
    /// How many records a second there may be; no limit by default.
    pub budget: Option<Budget>,
    config: Option<tokio::sync::watch::Receiver<live::State>>,
    /// What the config file says of records, as of the last look.
    pub configured: live::State,
    fingerprints: Fingerprints,
    pub output: Output,
}

/// A drop that waits for the name of one of its ends.
struct Held {
    packet: Packet,
    repeats: Repeats,
    facts: packet::Facts,
    origin: Origin,
    deadline: Instant,
    /// Not for a name, but for news that would change the judgement: looked at once, at the deadline.
    settles: bool,
    /// What has no name yet was asked for.
    asked: bool,
}

/// An unanswered connection that waits for the name of one of its ends.
struct Silent {
    finding: flows::Finding,
    deadline: Instant,
    asked: bool,
}

impl Pipeline {
    pub fn new(
        cluster: Cluster,
        node: Option<String>,
        all_drops: bool,
        intake: Arc<Intake>,
        output: Output,
    ) -> Pipeline {
        Pipeline {
            cluster,
            node,
            all_drops,
            options: verdict::Options::default(),
            memo: Memo::default(),
            clock: Clock::now(),
            now: Instant::now(),
            books: Books::default(),
            intake,
            held: VecDeque::new(),
            silent: VecDeque::new(),
            tracked_netns: HashSet::new(),
            flows: None,
            inventory: None,
            lookups: None,
            budget: None,
            config: None,
            configured: live::State::default(),
            fingerprints: Fingerprints::new(output.cluster(), output.run()),
            output,
        }
    }

    /// Judges drops of the agent's own network namespace with what can drop there.
    pub fn with_inventory(mut self, inventory: Watcher) -> Pipeline {
        self.inventory = Some(inventory);
        self
    }

    /// What can drop here, as it was read last.
    pub fn inventory(&self) -> Option<Arc<Inventory>> {
        self.inventory.as_ref().map(Watcher::latest)
    }

    /// Follows the config file.
    pub fn with_config(mut self, config: tokio::sync::watch::Receiver<live::State>) -> Pipeline {
        self.configured = config.borrow().clone();
        self.config = Some(config);
        self
    }

    /// Takes up what the config file says now; whether that is news.
    pub fn reconfigured(&mut self) -> bool {
        let Some(config) = self.config.as_mut().filter(|config| config.has_changed().unwrap_or(false)) else {
            return false;
        };
        self.configured = config.borrow_and_update().clone();
        true
    }

    /// Drops, each through all stages.
    pub fn handle(&mut self, drops: impl IntoIterator<Item = RawDrop>) -> Result<(), SinkError> {
        self.now = Instant::now();
        drops.into_iter().try_for_each(|drop| self.one(drop))
    }

    fn one(&mut self, raw: RawDrop) -> Result<(), SinkError> {
        let RawDrop { event, facts, repeats } = raw;
        let packets = repeats.packets();
        let origin = Origin { iif: event.iif, netns: facts.netns };
        if facts.site.candidate == Candidate::Noise {
            self.leave_out(Cause::NotPolicy, packets);
            return Ok(());
        }
        let mut packet = match packet::decode(&event) {
            Ok(packet) => packet,
            // ARP, LLDP and the like: no policy speaks of them.
            Err(PacketError::NotIp) => {
                self.leave_out(Cause::NotPolicy, packets);
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(
                    reason = facts.reason.as_deref(),
                    kind = error.kind(),
                    "a drop without a readable packet"
                );
                self.books.lost_undecoded += packets;
                self.output.metrics().error("packet", error.kind());
                return Ok(());
            }
        };
        if let Some(flows) = &mut self.flows {
            flows.saw_drop(&packet, self.now);
        }
        if repeats.same != Sameness::Flow {
            packet.headers.source_port = None;
        }
        if let (Some(netns), true) = (facts.netns, packet.conntrack.is_some())
            && self.tracked_netns.len() < MAX_NETNS
        {
            self.tracked_netns.insert(netns);
        }
        let may_wait =
            self.held.len() < MAX_HELD && matches!(facts.site.candidate, Candidate::Policy | Candidate::Maybe);
        let deadline = self.now + NAMING_TIME;
        let held = Held { packet, repeats, facts, origin, deadline, settles: false, asked: false };
        self.books.held += packets;
        if let Some(held) = self.try_finish(held, may_wait)? {
            self.held.push_back(held);
        }
        Ok(())
    }

    /// Looks again at what waits: known now, or out of time.
    pub fn revisit(&mut self, all: bool) -> Result<(), SinkError> {
        let now = Instant::now();
        self.now = now;
        for held in std::mem::take(&mut self.held) {
            let may_wait = !all && held.deadline > now;
            let waits = if held.settles && may_wait { Some(held) } else { self.try_finish(held, may_wait)? };
            self.held.extend(waits);
        }
        Ok(())
    }

    /// Names, judges and writes a drop, or gives it back to wait.
    fn try_finish(&mut self, mut held: Held, may_wait: bool) -> Result<Option<Held>, SinkError> {
        let cluster = self.cluster.clone();
        let index = cluster.read();
        let time = self.clock.wall(held.packet.time);
        let moment = index.at(time, &enrich::addresses(&held.packet));
        let mut flow = enrich::name(&held.packet, &moment);
        // A count is of some time, in which an address may have changed hands.
        let last = self.clock.wall(held.repeats.last.max(held.packet.time));
        let later = (last > time).then(|| index.at(last, &enrich::addresses(&held.packet)));
        if let Some(later) = &later {
            flow.hold_throughout(&enrich::name(&held.packet, later));
        }
        doubt(self.lookups.as_ref(), &mut flow, &index, time, !std::mem::replace(&mut held.asked, true));
        if may_wait && flow.may_be_named_later() {
            return Ok(Some(held));
        }
        if may_wait && flow.may_have_left() {
            held.settles = true;
            return Ok(Some(held));
        }
        // What was said before is said again where the index is what it was.
        let as_now = moment.is_as_now() && later.as_ref().is_none_or(Moment::is_as_now);
        let subject = if as_now { Subject::of(&flow) } else { None };
        let written = self.finish(&index, &held, &flow, subject, may_wait)?;
        held.settles = !written;
        self.books.held -= if written { held.repeats.packets() } else { 0 };
        Ok((!written).then_some(held))
    }

    /// Judges a named flow and writes its record; `false`: it should wait, and may.
    ///
    /// What is in the record and not needed to decide whether there is one is found out last: under a flood most packets get none.
    fn finish(
        &mut self,
        index: &Index,
        held: &Held,
        flow: &Flow<'_>,
        subject: Option<Subject>,
        may_wait: bool,
    ) -> Result<bool, SinkError> {
        let Held { packet, repeats, facts, origin, .. } = held;
        let packets = repeats.packets();
        let time = self.clock.wall(packet.time);
        let watched = self.inventory.as_ref().and_then(Watcher::current);
        let inventory = watched.as_deref().filter(|inventory| inventory.is_of(facts.netns));
        let about = Circumstances {
            site: cause::firm_up(facts.site, packet.family(), inventory),
            headers: &packet.headers,
            untracked: packet.untracked,
            netns_tracks: facts.netns.is_some_and(|netns| self.tracked_netns.contains(&netns)),
            node: self.node.as_deref(),
            own_node: cause::own_node(flow),
            service_has_endpoints: cause::service_has_endpoints(flow, index),
            inventory,
            family: packet.family(),
            device: facts.device.as_deref(),
            rejected: facts.rejected,
            answers: facts.answers,
        };
        let law = Law { index, options: &self.options, time };
        let said = subject.and_then(|subject| self.memo.get(&subject, index, time));
        let judged = judge(flow, &about, law, said);
        // An enforcer may know a new policy before the agent does.
        if judged.cause == Cause::Disagrees && may_wait {
            return Ok(false);
        }
        let admitted = self.configured.settings.admits(Some(judged.cause), &Ends::of_flow(flow));
        if !admitted || (!self.all_drops && !judged.cause.is_default()) {
            self.leave_out(judged.cause, packets);
            return Ok(true);
        }
        *self.books.causes.entry(judged.cause).or_default() += packets;
        let last = self.clock.wall(repeats.last.max(packet.time));
        let mut over = None;
        if let Some(budget) = &mut self.budget
            && !budget.spend(self.now)
        {
            let (bytes, segments) = (repeats.bytes(packet), repeats.segments(packet));
            let sums = Sums { count: packets, bytes, segments, first: time, last };
            let key = Key::of(flow, packet, about.site, facts.netns, judged.cause, judged.direction);
            self.books.held += packets;
            match budget.add(key, &sums) {
                None => return Ok(true),
                Some(key) => over = Some((key, sums)),
            }
        }
        let memo = subject.map(|subject| (&mut self.memo, subject));
        let decision = judged.evidence(flow, &about, law, &self.cluster.stale(), memo);
        let mut body = drop_body(packet, facts, about.site, flow, decision);
        if let Body::Drop(drop) = &mut body {
            drop.counts(packet, repeats, last);
        }
        if let (Some(flows), Body::Drop(drop)) = (&mut self.flows, &mut body) {
            flows.annotate(drop, packet, *origin, index, self.now);
        }
        self.configured.settings.redact(&mut body);
        match (over, body, &mut self.budget) {
            (Some((key, sums)), Body::Drop(drop), Some(budget)) => budget.begin(key, drop, &sums),
            (_, body, _) => {
                let fingerprint = self.fingerprints.drop(packet, facts, *origin, repeats);
                self.output.write(body, Some(fingerprint), time, packets)?;
            }
        }
        Ok(true)
    }

    /// Counts packets that get no line.
    fn leave_out(&mut self, cause: Cause, packets: u64) {
        self.books.filtered += packets;
        *self.books.causes.entry(cause).or_default() += packets;
    }

    /// Writes what was folded for want of records in the budget.
    pub fn end_folds(&mut self) -> Result<(), SinkError> {
        for (body, time, packets) in self.budget.iter_mut().flat_map(Budget::take) {
            self.books.held -= packets;
            // Of several flows, within this agent's own window: no other agent's is the same.
            self.output.write(body, None, time, packets)?;
        }
        Ok(())
    }

    /// Writes connections that died in silence, once their ends are known or out of time; at the end `all` of them.
    pub fn unanswered(&mut self, all: bool) -> Result<(), SinkError> {
        let now = Instant::now();
        let found = self.flows.as_mut().map(|flows| flows.unanswered(now)).unwrap_or_default();
        let new = found.into_iter().map(|finding| Silent { finding, deadline: now + NAMING_TIME, asked: false });
        self.silent.extend(new);
        if self.silent.is_empty() {
            return Ok(());
        }
        let cluster = self.cluster.clone();
        let index = cluster.read();
        for mut silent in std::mem::take(&mut self.silent) {
            let may_wait = !all && silent.deadline > now;
            let finding = &silent.finding;
            let time = self.clock.wall(finding.opened);
            let names_of = |flows: &Flows<View>| flows.names_of(finding.tuple.client.0, finding.tuple.server.0, now);
            let names = self.flows.as_ref().map(names_of).unwrap_or_default();
            let moment = index.at(time, &[finding.tuple.client.0, finding.tuple.server.0]);
            let mut flow = flows::flow(finding, &moment);
            doubt(self.lookups.as_ref(), &mut flow, &index, time, !std::mem::replace(&mut silent.asked, true));
            if may_wait && flow.may_be_named_later() {
                self.silent.push_back(silent);
                continue;
            }
            let stale = self.cluster.stale();
            let mut body = flows::body(finding, &flow, &index, &self.options, names, time, &stale);
            if let Body::Unanswered(silent) = &body
                && !self.configured.settings.admits(None, &Ends::of_record(&silent.source, &silent.destination))
            {
                if let Some(flows) = &mut self.flows {
                    flows.leave_out(finding);
                }
                continue;
            }
            self.configured.settings.redact(&mut body);
            let fingerprint = self.fingerprints.unanswered(finding, time);
            self.output.write(body, Some(fingerprint), time, 0)?;
        }
        Ok(())
    }

    /// Writes what changed of the policies.
    pub fn policy_changes(&mut self) -> Result<(), SinkError> {
        let (events, lost) = self.cluster.take_events();
        for event in &events {
            let change = changes::change(event);
            let fingerprint = self.fingerprints.policy_change(&change, event.at);
            self.output.write(Body::PolicyChange(Box::new(change)), Some(fingerprint), event.at, 0)?;
        }
        if !events.is_empty() {
            // What was counted until now is told by itself.
            self.intake.turn.store(true, Ordering::Release);
        }
        if lost > 0 {
            let now = Timestamp::now();
            let loss = Loss {
                stage: LossStage::AgentQueue,
                reason: "policy_changes_full".into(),
                of: Some("policy_changes".into()),
                count: Some(lost),
                estimate: false,
                last_time: Some(now),
                sink: None,
                first_id: None,
                last_id: None,
            };
            self.tell(Body::Loss(loss), now)?;
        }
        Ok(())
    }

    /// Writes a record of the agent's own state.
    pub fn tell(&mut self, body: Body, time: Timestamp) -> Result<(), SinkError> {
        self.output.write(body, None, time, 0)
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}
