//! The worker thread: runs the pipeline, declares losses once a second and writes a status once a minute.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netpol_trace_common::tc::FlowCounters;

use super::channel::{self, Message};
use super::losses::{DeclaredLosses, LossCounts};
use super::status::{KernelReadings, SourceSummary, StartState, source_summary};
use crate::kernel::attach::Inherited;
use crate::kernel::clock::Clock;
use crate::kernel::counters::{CounterReading, KernelCounters};
use crate::kernel::handover::Handover;
use crate::kernel::tc::TcCounters;
use crate::metrics::Published;
use crate::model::{Loss, LossKind, LossStage, RunPhase};
use crate::pipeline::Pipeline;
use crate::record::{Body, Status};
use crate::sink::SinkError;

/// Messages that the worker takes before it looks at the clock.
const BURST: usize = 64;
/// Period of the look at losses and of the comparison of the clocks.
const TICK: Duration = Duration::from_secs(1);
/// Period of the look at drops that wait for a name.
const REVISIT: Duration = Duration::from_millis(50);
/// Period of status records.
const STATUS: Duration = Duration::from_secs(60);

/// What the worker needs besides the pipeline.
pub struct Setup<'a> {
    /// `None` without the kfree_skb hook.
    pub counters: Option<&'a KernelCounters>,
    /// `None` without the tc hook.
    pub tc_counters: Option<TcCounters>,
    pub start: StartState,
    /// The time without hooks before this run.
    pub gap: Option<(Timestamp, Loss)>,
    /// Size of the kernel's ring buffer in bytes.
    pub ring_size: u64,
    /// Length of the window in which drops above the record budget are aggregated.
    pub window: Duration,
    /// Progress of this run, for the next agent; `None` without the kfree_skb hook.
    pub handover: Option<Arc<Handover>>,
    /// What an earlier agent left in the kernel.
    pub inherited: Inherited,
}

/// Runs until the reader thread ends or the reader of the primary sink has gone. Neither is an error.
pub fn run(pipeline: Pipeline, messages: &Receiver<Message>, setup: Setup<'_>) -> anyhow::Result<()> {
    let lost_before = setup.handover.as_ref().map_or(0, |handover| handover.lost().load(Ordering::Acquire));
    let losses = DeclaredLosses::default();
    let mut worker = Worker { pipeline, setup, losses, lost_before, sources: Vec::new(), ring_peak: 0 };
    let result = worker.work(messages).and_then(|()| worker.end());
    if result.is_err() {
        // Nobody reads the primary sink any more. The other sinks get what is left, and the last status.
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
    losses: DeclaredLosses,
    /// Kernel losses that earlier runs declared.
    lost_before: u64,
    /// Peak fill of the kernel's ring buffer in bytes within the last whole minute.
    ring_peak: u64,
    /// The sources as of the last status.
    sources: SourceSummary,
}

impl Worker<'_> {
    fn work(&mut self, messages: &Receiver<Message>) -> Result<(), SinkError> {
        self.status(RunPhase::Started)?;
        if let Some((since, loss)) = self.setup.gap.take() {
            self.pipeline.write_record(Body::Loss(loss), since)?;
        }
        self.declare_losses_of_the_run_before()?;
        self.pipeline.update_local_addresses();
        let (mut next_tick, mut next_status) = (Instant::now() + TICK, Instant::now() + STATUS);
        let mut next_window = Instant::now() + self.setup.window;
        loop {
            match messages.recv_timeout(REVISIT) {
                Ok(message) => {
                    self.take(message)?;
                    // Under a flood the queue is never empty, and losses and statuses must be written all the same.
                    for message in messages.try_iter().take(BURST) {
                        self.take(message)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if self.pipeline.reconfigured() {
                self.status(RunPhase::Running)?;
            }
            self.pipeline.policy_changes()?;
            self.pipeline.revisit(false)?;
            self.pipeline.unanswered(false)?;
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.pipeline.clock = Clock::now();
                self.pipeline.update_local_addresses();
                self.declare_losses()?;
                self.write_source_changes()?;
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
                self.status(RunPhase::Running)?;
            }
        }
    }

    /// Declares packets of an earlier agent: those that it held when it was killed, and those in pins that this agent removed.
    fn declare_losses_of_the_run_before(&mut self) -> Result<(), SinkError> {
        let Inherited { lost, removed, .. } = self.setup.inherited;
        let killed = (lost > 0).then_some((LossKind::KILLED, Some(lost)));
        // Nobody can know how many: an agent of another version counts in another way.
        let removed = removed.then_some((LossKind::PINS_REMOVED, None));
        for (kind, count) in killed.into_iter().chain(removed) {
            let now = Timestamp::now();
            self.pipeline.write_record(Body::Loss(kind.declare(count, now)), now)?;
        }
        Ok(())
    }

    /// Writes what is left, and the last status, in which nothing is held any more.
    fn end(&mut self) -> Result<(), SinkError> {
        let left = self.pipeline.policy_changes();
        let left = left
            .and_then(|()| self.pipeline.revisit(true))
            .and_then(|()| self.pipeline.end_aggregates())
            .and_then(|()| self.pipeline.unanswered(true))
            .and_then(|()| self.declare_losses());
        self.pipeline.output.drain();
        if let Some(handover) = &self.setup.handover
            && self.pipeline.output.primary().held == 0
        {
            // Every packet that was read is written or declared as lost, so the next agent need not declare any.
            handover.commit();
        }
        self.status(RunPhase::Stopped).and(left)
    }

    fn take(&mut self, message: Message) -> Result<(), SinkError> {
        match message {
            Message::Drops(drops) => {
                let count = drops.iter().map(|drop| drop.packet_count.packets()).sum();
                self.pipeline.handle(drops)?;
                self.pipeline.intake.queued.fetch_sub(count, Ordering::AcqRel);
                self.update_handover();
            }
            Message::Connections(events) => {
                let now = Instant::now();
                if let Some(flows) = &mut self.pipeline.flows {
                    events.into_iter().for_each(|event| flows.take(event, now));
                }
            }
        }
        Ok(())
    }

    /// Writes a status if a source has come into sync, gone out of it, or has another error. Called once a tick, because all watches end
    /// at once when an API server stops.
    fn write_source_changes(&mut self) -> Result<(), SinkError> {
        if source_summary(&self.pipeline) == self.sources { Ok(()) } else { self.status(RunPhase::Running) }
    }

    /// Reads the counters of the kfree_skb hook, which are all zero without that hook. Returns `None` if they cannot be read.
    fn drop_counters(&self) -> Option<CounterReading> {
        let Some(counters) = self.setup.counters else { return Some(CounterReading::default()) };
        let failed = |error: &_| {
            self.pipeline.output.metrics().error("kernel", "counters");
            tracing::error!(%error, "the kernel programs' counters cannot be read");
        };
        counters.read().inspect_err(failed).ok()
    }

    fn tc_counters(&self) -> Option<FlowCounters> {
        let reading = self.setup.tc_counters.as_ref()?.read();
        reading.inspect_err(|error| tracing::error!(%error, "the tc hook's counters cannot be read")).ok()
    }

    /// Writes a record for each kind of loss whose counter has grown since the last look.
    fn declare_losses(&mut self) -> Result<(), SinkError> {
        let intake = &self.pipeline.intake;
        let counts = LossCounts {
            kernel: self.drop_counters().map(|reading| reading.totals),
            tc: self.tc_counters(),
            queue: intake.lost.load(Ordering::Acquire),
            connections_queue: intake.lost_connections.load(Ordering::Acquire),
            undecoded: self.pipeline.accounting.lost_undecoded,
        };
        let now = Timestamp::now();
        let new = self.losses.look(&counts, now);
        if let (true, Some(flows)) = (new.may_hide_drops(), &mut self.pipeline.flows) {
            flows.note_lost_drops(Instant::now());
        }
        for (kind, count) in new.losses {
            self.pipeline.write_record(Body::Loss(kind.declare(Some(count), now)), new.since)?;
        }
        self.update_handover();
        Ok(())
    }

    /// Stores for the next agent which packets need no record any more, in case this agent is killed.
    fn update_handover(&self) {
        let Some(handover) = &self.setup.handover else { return };
        let in_agent = self.losses.declared(LossKind::QUEUE_FULL) + self.losses.declared(LossKind::UNREADABLE);
        handover.left_out().store(self.pipeline.accounting.filtered + in_agent, Ordering::Release);
        let ring = self.losses.declared(LossKind::RING_FULL);
        if ring > 0 {
            handover.lost().fetch_max(self.lost_before + ring, Ordering::AcqRel);
        }
    }

    fn status(&mut self, phase: RunPhase) -> Result<(), SinkError> {
        let now = Timestamp::now();
        self.sources = source_summary(&self.pipeline);
        let status = self.state(phase, now);
        self.pipeline.write_record(Body::Status(Box::new(status)), now)?;
        self.publish();
        Ok(())
    }

    /// Publishes the state for /metrics and the probes.
    fn publish(&mut self) {
        let status = self.state(RunPhase::Running, Timestamp::now());
        let Pipeline { intake, output, .. } = &self.pipeline;
        let of_sinks = output.losses().into_iter().map(|(reason, count)| ((LossStage::Sink, reason), count));
        let peak = intake.ring_peak.load(Ordering::Acquire);
        output.metrics().publish(Published {
            status,
            losses: self.losses.by_reason().into_iter().chain(of_sinks).collect(),
            queued: intake.queued.load(Ordering::Acquire),
            queue_size: channel::ROOM,
            ring_peak: peak.max(self.ring_peak),
            ring_size: self.setup.ring_size,
        });
    }

    fn state(&self, phase: RunPhase, now: Timestamp) -> Status {
        let kernel = KernelReadings { drops: self.drop_counters(), tc: self.tc_counters() };
        self.setup.start.status(phase, &self.pipeline, kernel, now)
    }
}
