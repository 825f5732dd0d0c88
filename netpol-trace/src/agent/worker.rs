//! Runs the pipeline, and tells once a second what was lost and once a minute how things stand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netpol_trace_common::tc::FlowCounters;

use super::previous::Previous;
use crate::inventory::{Inventory, coverage};
use crate::kernel::KernelDrop;
use crate::kernel::attach::{Attached, Inherited};
use crate::kernel::clock::Clock;
use crate::kernel::counters::{CounterReading, KernelCounters};
use crate::kernel::handover::Handover;
use crate::kernel::hook::AttachForm;
use crate::kernel::symbols::SymbolsError;
use crate::kernel::tc;
use crate::metrics::Published;
use crate::model::{ConnectionTotals, HistoryState, HookState, Loss, LossStage, Phase, SourceState, Text, Totals};
use crate::pipeline::Pipeline;
use crate::record::{Body, Status};
use crate::sink::SinkError;

/// What the worker is told.
#[derive(Debug)]
pub enum Message {
    Drops(Vec<KernelDrop>),
    Flows(Vec<tc::TcEvent>),
}

/// Messages taken before the clocks are looked at again.
const BURST: usize = 64;
/// Loss is looked for, and clocks are compared, this often.
const TICK: Duration = Duration::from_secs(1);
/// What waits for a name is looked at this often.
const REVISIT: Duration = Duration::from_millis(50);
/// A status is written this often.
const STATUS: Duration = Duration::from_secs(60);

/// What the worker is set up with.
pub struct Setup<'a> {
    /// With the kfree_skb hook.
    pub counters: Option<&'a KernelCounters>,
    /// With the tc hook.
    pub flow_counters: Option<tc::TcCounters>,
    pub hooks: Vec<HookState>,
    pub previous: Option<Previous>,
    /// Octets of the kernel's ring.
    pub ring_size: u64,
    /// How long drops above the budget are folded.
    pub window: Duration,
    /// With the kfree_skb hook: how far this agent has come, for the next one.
    pub handover: Option<Arc<Handover>>,
    /// What an agent before this one left in the kernel.
    pub inherited: Inherited,
}

/// Until the reader ends. A reader of the output that went away is a good end.
pub fn run(pipeline: Pipeline, messages: &Receiver<Message>, setup: Setup<'_>) -> anyhow::Result<()> {
    let lost_before = setup.handover.as_ref().map_or(0, |handover| handover.lost().load(Ordering::Acquire));
    let told = Told::default();
    let mut worker = Worker { pipeline, setup, told, lost_before, sources: Vec::new(), ring_peak: 0 };
    let result = worker.work(messages).and_then(|()| worker.end());
    if result.is_err() {
        // Nobody reads the first sink any more: the others get what there is, and the end.
        let _ = worker.end();
    }
    anyhow::ensure!(worker.pipeline.output.finish(), "a sink's thread panicked");
    match result {
        Ok(()) | Err(SinkError::Closed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Worker<'a> {
    pipeline: Pipeline,
    setup: Setup<'a>,
    told: Told,
    /// Of the kernel's losses, those that runs before this one declared.
    lost_before: u64,
    /// The most octets of the kernel's ring in use within the last whole minute.
    ring_peak: u64,
    /// How the sources stood in the last status: in sync or not, and why not.
    sources: Vec<(String, bool, Option<String>)>,
}

/// Losses that have their record.
#[derive(Debug, Default)]
struct Told {
    ring: u64,
    recursion: u64,
    queue: u64,
    undecoded: u64,
    flows: FlowLosses,
    since: Option<Timestamp>,
}

/// Losses of the tc hook: in the map, in the ring, of answers, in the queue.
#[derive(Debug, Default)]
struct FlowLosses {
    full: u64,
    insert: u64,
    ring: u64,
    answers: u64,
    queue: u64,
}

impl FlowLosses {
    /// As counters that stand where they were last seen.
    fn counters(&self) -> FlowCounters {
        FlowCounters {
            lost_full: self.full,
            lost_insert: self.insert,
            lost_ring: self.ring,
            answers_lost: self.answers,
            ..FlowCounters::default()
        }
    }
}

impl Worker<'_> {
    fn work(&mut self, messages: &Receiver<Message>) -> Result<(), SinkError> {
        self.status(Phase::Started)?;
        if let Some((since, loss)) = self.setup.previous.as_mut().and_then(|previous| previous.gap.take()) {
            self.pipeline.write_record(Body::Loss(loss), since)?;
        }
        self.losses_of_the_run_before()?;
        let (mut next_tick, mut next_status) = (Instant::now() + TICK, Instant::now() + STATUS);
        let mut next_window = Instant::now() + self.setup.window;
        loop {
            match messages.recv_timeout(REVISIT) {
                Ok(message) => {
                    self.take(message)?;
                    // What else is there already. Bounded: under a flood there is always more, and losses and statuses must be
                    // told all the same.
                    for message in messages.try_iter().take(BURST) {
                        self.take(message)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if self.pipeline.reconfigured() {
                self.status(Phase::Running)?;
            }
            self.pipeline.policy_changes()?;
            self.pipeline.revisit(false)?;
            self.pipeline.unanswered(false)?;
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.pipeline.clock = Clock::now();
                self.losses()?;
                self.sources()?;
                self.publish();
                if self.pipeline.output.is_closed() {
                    return Err(SinkError::Closed);
                }
            }
            if now >= next_window {
                next_window = now + self.setup.window;
                self.pipeline.end_aggregates()?;
            }
            if now >= next_status {
                next_status = now + STATUS;
                self.ring_peak = self.pipeline.intake.ring_peak.swap(0, Ordering::AcqRel);
                if let Some(flows) = &mut self.pipeline.flows {
                    flows.sweep();
                    flows.kernel().interfaces.look_for_others();
                }
                self.status(Phase::Running)?;
            }
        }
    }

    /// Declares packets of an earlier agent: those that ended with it, and those in pins that this agent removed.
    fn losses_of_the_run_before(&mut self) -> Result<(), SinkError> {
        let Inherited { lost, removed, .. } = self.setup.inherited;
        let killed = (lost > 0).then_some((LossStage::AgentQueue, "killed", Some(lost)));
        // Nobody can know how many: another version counts in its own way.
        let removed = removed.then_some((LossStage::KernelMap, "pins_removed", None));
        for (stage, reason, count) in killed.into_iter().chain(removed) {
            let now = Timestamp::now();
            let loss = Loss {
                stage,
                reason: reason.into(),
                of: Some("packets_of_the_run_before".into()),
                count,
                estimate: false,
                last_time: Some(now),
                sink: None,
                first_id: None,
                last_id: None,
            };
            self.pipeline.write_record(Body::Loss(loss), now)?;
        }
        Ok(())
    }

    /// What is left, and the last status, in which nothing is held any more.
    fn end(&mut self) -> Result<(), SinkError> {
        let left = self.pipeline.policy_changes();
        let left = left
            .and_then(|()| self.pipeline.revisit(true))
            .and_then(|()| self.pipeline.end_aggregates())
            .and_then(|()| self.pipeline.unanswered(true))
            .and_then(|()| self.losses());
        self.pipeline.output.drain();
        if let Some(handover) = &self.setup.handover
            && self.pipeline.output.primary().held == 0
        {
            // All that was read is told or declared: nothing of it is for the next agent.
            handover.commit();
        }
        self.status(Phase::Stopped).and(left)
    }

    fn take(&mut self, message: Message) -> Result<(), SinkError> {
        match message {
            Message::Drops(drops) => {
                let count = drops.iter().map(|drop| drop.repeats.packets()).sum();
                self.pipeline.handle(drops)?;
                self.pipeline.intake.queued.fetch_sub(count, Ordering::AcqRel);
                self.note();
                Ok(())
            }
            Message::Flows(told) => {
                let now = Instant::now();
                if let Some(flows) = &mut self.pipeline.flows {
                    told.into_iter().for_each(|told| flows.take(told, now));
                }
                Ok(())
            }
        }
    }

    /// A status when a source stands otherwise than told. Once a tick: when a server goes, all of its watches end.
    fn sources(&mut self) -> Result<(), SinkError> {
        if stand(&self.pipeline) == self.sources { Ok(()) } else { self.status(Phase::Running) }
    }

    /// `None` when the counters can't be read; nothing is counted without the hook.
    fn reading(&self) -> Option<CounterReading> {
        let Some(counters) = self.setup.counters else { return Some(CounterReading::default()) };
        let failed = |error: &_| {
            self.pipeline.output.metrics().error("kernel", "counters");
            tracing::error!(%error, "the kernel's counters can't be read");
        };
        counters.read().inspect_err(failed).ok()
    }

    fn flow_reading(&self) -> Option<FlowCounters> {
        let reading = self.setup.flow_counters.as_ref()?.read();
        reading.inspect_err(|error| tracing::error!(%error, "the tc hook's counters can't be read")).ok()
    }

    /// A record for each kind of loss that has grown since the last look.
    fn losses(&mut self) -> Result<(), SinkError> {
        let now = Timestamp::now();
        let since = self.told.since.replace(now).unwrap_or(now);
        // Counters that can't be read now are looked at again the next time: what is told stays told.
        let kernel = self.reading().map(|reading| (reading.totals.lost, reading.totals.recursion_misses));
        let (ring_lost, recursion) = kernel.unwrap_or((self.told.ring, self.told.recursion));
        let queue = self.pipeline.intake.lost.load(Ordering::Acquire);
        let undecoded = self.pipeline.accounting.lost_undecoded;
        let kernel_before = (self.told.ring, self.told.recursion, self.told.queue);
        let flows = self.flow_reading().unwrap_or_else(|| self.told.flows.counters());
        let flows_queue = self.pipeline.intake.lost_flows.load(Ordering::Acquire);
        let told = &mut self.told.flows;
        let grown_flows = [
            (LossStage::KernelMap, "connections_full", "connections", flows.lost_full, &mut told.full),
            (LossStage::KernelMap, "connection_refused", "connections", flows.lost_insert, &mut told.insert),
            (LossStage::KernelRing, "connections_ring_full", "connections", flows.lost_ring, &mut told.ring),
            (LossStage::KernelRing, "connections_ring_full", "answers", flows.answers_lost, &mut told.answers),
            (LossStage::AgentQueue, "queue_full", "connections", flows_queue, &mut told.queue),
        ]
        .map(|(stage, reason, of, total, told)| (stage, reason, Some(of), total, told, false));
        let grown = [
            (LossStage::KernelRing, "ring_full", ring_lost, &mut self.told.ring, false),
            (LossStage::KernelRecursion, "recursion_protection", recursion, &mut self.told.recursion, true),
            (LossStage::AgentQueue, "queue_full", queue, &mut self.told.queue, false),
            (LossStage::AgentQueue, "unreadable_packet", undecoded, &mut self.told.undecoded, false),
        ]
        .map(|(stage, reason, total, told, estimate)| (stage, reason, None, total, told, estimate));
        let losses = grown.into_iter().chain(grown_flows).filter_map(|(stage, reason, of, total, told, estimate)| {
            let count = total.saturating_sub(std::mem::replace(told, total));
            (count > 0).then(|| Loss {
                stage,
                reason: reason.into(),
                of: of.map(Into::into),
                count: Some(count),
                estimate,
                last_time: Some(now),
                sink: None,
                first_id: None,
                last_id: None,
            })
        });
        let losses: Vec<Loss> = losses.collect();
        if kernel_before != (self.told.ring, self.told.recursion, self.told.queue)
            && let Some(flows) = &mut self.pipeline.flows
        {
            flows.lost_drops(Instant::now());
        }
        for loss in losses {
            self.pipeline.write_record(Body::Loss(loss), since)?;
        }
        self.note();
        Ok(())
    }

    /// For the next agent, should this one be killed: what needs no line any more.
    fn note(&self) {
        let Some(handover) = &self.setup.handover else { return };
        let Told { ring, queue, undecoded, .. } = self.told;
        handover.left_out().store(self.pipeline.accounting.filtered + queue + undecoded, Ordering::Release);
        if ring > 0 {
            handover.lost().fetch_max(self.lost_before + ring, Ordering::AcqRel);
        }
    }

    fn status(&mut self, phase: Phase) -> Result<(), SinkError> {
        let now = Timestamp::now();
        self.sources = stand(&self.pipeline);
        let status = self.state(phase, now);
        self.pipeline.write_record(Body::Status(Box::new(status)), now)?;
        self.publish();
        Ok(())
    }

    /// How things stand, for /metrics and the probes.
    fn publish(&mut self) {
        let status = self.state(Phase::Running, Timestamp::now());
        let Pipeline { intake, output, .. } = &self.pipeline;
        let told = &self.told;
        let losses = [
            ("kernel_ring", "ring_full", told.ring),
            ("kernel_recursion", "recursion_protection", told.recursion),
            ("agent_queue", "queue_full", told.queue + told.flows.queue),
            ("agent_queue", "unreadable_packet", told.undecoded),
            ("kernel_map", "connections_full", told.flows.full),
            ("kernel_map", "connection_refused", told.flows.insert),
            ("kernel_ring", "connections_ring_full", told.flows.ring + told.flows.answers),
        ];
        let of_sinks = output.losses().into_iter().map(|(reason, count)| ("sink", reason, count));
        let peak = intake.ring_peak.load(Ordering::Acquire);
        output.metrics().publish(Published {
            status,
            losses: losses.into_iter().chain(of_sinks).collect(),
            queued: intake.queued.load(Ordering::Acquire),
            queue_size: (super::QUEUE * super::reader::BATCH) as u64,
            ring_peak: peak.max(self.ring_peak),
            ring_size: self.setup.ring_size,
        });
    }

    fn state(&self, phase: Phase, now: Timestamp) -> Status {
        let reading = self.reading();
        let connections = self.flow_reading().map(|counters| connections(&counters, &self.pipeline));
        let pipeline = &self.pipeline;
        let (kept, crowded_out) = pipeline.cluster().read().history();
        let mut hooks = self.setup.hooks.clone();
        hooks.extend(pipeline.inventory().map(|inventory| inventory_state(&inventory)));
        hooks.extend(pipeline.flows.iter().map(|flows| tc_state(&flows.kernel().interfaces)));
        Status {
            phase,
            version: env!("CARGO_PKG_VERSION").into(),
            previous_run: self.setup.previous.as_ref().map(|previous| previous.run.clone()),
            totals: Totals {
                kernel: reading.as_ref().map(|reading| reading.totals),
                agent: pipeline.accounting.totals(&pipeline.intake, pipeline.output.primary()),
            },
            causes: pipeline.output.not_lost(pipeline.accounting.causes.clone()),
            not_recorded: reading.map(|reading| reading.not_recorded).unwrap_or_default(),
            connections,
            hooks,
            config: pipeline.configured.file.as_ref().map(|file| file.state(now)),
            sources: pipeline.cluster().sources().iter().map(|source| source_state(source, now)).collect(),
            history: HistoryState { kept: kept as u64, crowded_out },
            sinks: pipeline.output.states(),
        }
    }
}

fn stand(pipeline: &Pipeline) -> Vec<(String, bool, Option<String>)> {
    pipeline.cluster().sources().into_iter().map(|source| (source.name, source.synced, source.error)).collect()
}

fn source_state(source: &crate::cluster::source::SourceStatus, now: Timestamp) -> SourceState {
    SourceState {
        name: source.name.clone(),
        synced: source.synced,
        age_seconds: u64::try_from(now.duration_since(source.loaded_at).as_secs()).unwrap_or(0),
        objects: source.objects.clone(),
        skipped: source.skipped.clone(),
        error: source.error.clone(),
        detail: source.detail.clone(),
    }
}

fn connections(counters: &FlowCounters, pipeline: &Pipeline) -> ConnectionTotals {
    let tally = pipeline.flows.as_ref().map(|flows| flows.tally).unwrap_or_default();
    ConnectionTotals {
        opened: counters.opened,
        reported: counters.reported,
        lost: counters.lost_ring + counters.lost_full + counters.lost_insert,
        unanswered: tally.unanswered,
        unanswered_unreported: tally.unanswered_unreported,
        unread: counters.unread,
    }
}

/// The tc hook as a status tells it.
fn tc_state(interfaces: &tc::Interfaces) -> HookState {
    HookState { name: "tc".into(), state: interfaces.mode().as_str().into(), detail: Some(interfaces.describe()) }
}

/// The tc hook when it is not in use: [`HookState::OFF`] or [`HookState::REFUSED`].
pub fn tc_unused(state: Text, why: String) -> HookState {
    HookState { name: "tc".into(), state, detail: Some(why) }
}

/// The kfree_skb hook as a status tells it.
pub fn drop_state(attached: &Attached, symbols: Option<&SymbolsError>) -> HookState {
    let (state, mut detail) = match attached.hook() {
        AttachForm::BtfTracepoint => ("btf_tracepoint", None),
        AttachForm::RawTracepoint(why) => ("raw_tracepoint", Some(format!("BTF tracepoint refused: {why}"))),
    };
    if let Some(error) = symbols {
        detail = Some(format!("{}reasons only: {error}", detail.map(|d| d + "; ").unwrap_or_default()));
    }
    HookState { name: "kfree_skb".into(), state: state.into(), detail }
}

/// What of the rulesets can be read, and what drops unseen, as a status tells it.
fn inventory_state(inventory: &Inventory) -> HookState {
    let unknown = inventory.unknown();
    let state = if unknown.is_empty() { "read" } else { "partly_read" };
    let mut limits = coverage::uncovered(inventory, crate::kernel::release());
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        limits.push(format!("{unknown}: whose rule it was, and whether it drops or rejects, stays unknown there"));
    }
    let detail = (!limits.is_empty()).then(|| limits.join("; "));
    HookState { name: "rulesets".into(), state: state.into(), detail }
}
