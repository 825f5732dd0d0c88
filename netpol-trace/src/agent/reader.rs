//! Empties the kernel's ring: the only thread that the kernel waits for.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::worker::Message;
use crate::kernel::aggregate::Aggregator;
use crate::kernel::attach::Attached;
use crate::kernel::counters::KernelCounters;
use crate::kernel::ring::{self, DropRing};
use crate::kernel::tc::FlowRing;
use crate::kernel::{AggregatedDrop, KernelDrop, SiteNames};
use crate::pipeline::accounting::Intake;

/// Packets handed over at once.
pub const BATCH: usize = 128;
/// Octets read before anything else is looked at: under a flood there is always more.
const MOST_AT_ONCE: u64 = 32 << 20;
/// Records of connections handed over at once.
const MAX_FLOWS: usize = 4096;
/// How long a stop may go unnoticed while no record wakes the reader.
const WAIT: Duration = Duration::from_millis(50);
/// How soon it looks again while records come: the programs wake it once a tick at most.
const AGAIN: Duration = Duration::from_millis(5);
/// Longer than a tick of any kernel (10 ms): after so long without a record the next one wakes the reader.
const IDLE: Duration = Duration::from_millis(25);
/// Counts are asked for no more often than this, whatever changes.
const SOON: Duration = Duration::from_millis(500);
/// How long a program that was running when it was detached may take to end.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// How often to look for modules that came or went. What a new one drops is seen before that.
const MODULES: Duration = Duration::from_millis(200);

/// The hook on freed packets.
pub struct Drops {
    pub ring: DropRing,
    pub aggregator: Aggregator,
    /// How long repeated packets are counted before they are told.
    pub window: Duration,
    pub names: SiteNames,
    pub attached: Attached,
    pub counters: Arc<KernelCounters>,
}

/// The tc hook.
pub struct Connections {
    pub ring: FlowRing,
    /// The thread that attaches: it ends by itself when told to stop.
    pub attacher: JoinHandle<()>,
}

/// Reads until told to stop, then detaches and reads what is left.
pub fn run(
    mut drops: Option<Drops>,
    connections: Option<Connections>,
    intake: &Intake,
    stop: &AtomicBool,
    to_worker: &SyncSender<Message>,
) {
    let (mut flows, attacher) = connections.map(|c| (c.ring, c.attacher)).unzip();
    let rings: Vec<_> = drops.iter().map(|d| d.ring.as_raw_fd()).chain(flows.iter().map(|f| f.as_raw_fd())).collect();
    let mut send = Send { intake, to_worker, batch: Vec::new() };
    let (mut looked, mut turned, mut found) = (Instant::now(), Instant::now(), Instant::now());
    while !stop.load(Ordering::Acquire) {
        ring::wait(&rings, if found.elapsed() < IDLE { AGAIN } else { WAIT });
        if let Some(Drops { names, attached, .. }) = &mut drops
            && looked.elapsed() > MODULES
        {
            looked = Instant::now();
            if names.modules_changed() {
                names.refresh(attached);
            }
        }
        if send.all(drops.as_mut(), flows.as_mut()) {
            found = Instant::now();
        }
        let due = |window: Duration| {
            let asked = turned.elapsed() >= SOON && intake.turn.swap(false, Ordering::AcqRel);
            !window.is_zero() && (asked || turned.elapsed() >= window)
        };
        if let Some(drops) = drops.as_mut().filter(|drops| due(drops.window)) {
            turned = Instant::now();
            send.window(drops, flows.as_mut());
        }
    }
    if attacher.is_some_and(|attacher| attacher.join().is_err()) {
        tracing::error!("the thread that attaches tc programs panicked");
    }
    if let Some(drops) = &mut drops {
        if drops.attached.stays() {
            // The programs go on: what they tell from now on is for the next agent.
            send.window(drops, flows.as_mut());
            let Drops { aggregator, names, attached, .. } = drops;
            for drop in aggregator.take_pending() {
                send.hand_over(drop, names, attached, flows.as_mut());
            }
            send.flush(flows.as_mut());
            drops.counters.close(drops.attached.handover());
            tracing::info!(
                "the kfree_skb hook stays attached for the next agent; `netpol-trace doctor --cleanup` removes it"
            );
            return;
        }
        drops.attached.detach();
    }
    // A program may still be running on another CPU: the books balance when it has ended.
    let deadline = Instant::now() + LAST_RECORDS;
    loop {
        let balanced = drops.as_ref().is_none_or(|drops| {
            drops
                .counters
                .read()
                .is_ok_and(|r| r.totals.matched == r.totals.emitted + r.totals.aggregated + r.totals.lost)
        });
        send.all(drops.as_mut(), flows.as_mut());
        if balanced || Instant::now() > deadline {
            break;
        }
        std::thread::yield_now();
    }
    if let Some(drops) = &mut drops {
        let Drops { aggregator, names, attached, .. } = drops;
        if let Err(error) = aggregator.take_last(|drop| send.hand_over(drop, names, attached, flows.as_mut())) {
            tracing::error!(%error, "the last counts of repeated packets can't be read");
        }
        send.flush(flows.as_mut());
    }
}

struct Send<'a> {
    intake: &'a Intake,
    to_worker: &'a SyncSender<Message>,
    /// Drops to be handed over next.
    batch: Vec<KernelDrop>,
}

impl Send<'_> {
    /// What the rings have. Says whether there were drops.
    fn all(&mut self, drops: Option<&mut Drops>, mut flows: Option<&mut FlowRing>) -> bool {
        let mut found = 0;
        if let Some(Drops { ring, aggregator, names, attached, .. }) = drops {
            while found < MOST_AT_ONCE
                && let Some(event) = ring.pop()
            {
                found += ring::ENTRY;
                if let Some(drop) = aggregator.add(&event) {
                    self.hand_over(drop, names, attached, flows.as_deref_mut());
                }
            }
            self.intake.ring_peak.fetch_max(found, Ordering::AcqRel);
        }
        self.flush(flows);
        found > 0
    }

    /// Tells what was counted since the last time.
    fn window(&mut self, drops: &mut Drops, mut flows: Option<&mut FlowRing>) {
        let swapped = drops.aggregator.swap();
        // First reads every event that was sent before the swap, so that each count finds its first packet.
        self.all(Some(drops), flows.as_deref_mut());
        let Drops { aggregator, names, attached, .. } = drops;
        let taken =
            swapped.and_then(|()| aggregator.take(|drop| self.hand_over(drop, names, attached, flows.as_deref_mut())));
        if let Err(error) = taken {
            tracing::error!(%error, "the counts of repeated packets can't be read; they stay until the next try");
        }
        self.flush(flows);
    }

    /// Resolves the names of a drop's site and puts the drop into the next batch.
    fn hand_over(
        &mut self,
        drop: AggregatedDrop,
        names: &mut SiteNames,
        attached: &mut Attached,
        flows: Option<&mut FlowRing>,
    ) {
        let facts = names.resolve(&drop.site, attached);
        self.batch.push(KernelDrop::new(drop, facts));
        if self.batch.len() == BATCH {
            self.flush(flows);
            // More will follow, most likely.
            self.batch.reserve_exact(BATCH);
        }
    }

    /// Hands over what there is.
    fn flush(&mut self, flows: Option<&mut FlowRing>) {
        self.flows(flows);
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        let packets = batch.iter().map(|drop| drop.repeats.packets()).sum();
        self.intake.read.fetch_add(packets, Ordering::AcqRel);
        self.intake.queued.fetch_add(packets, Ordering::AcqRel);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.to_worker.try_send(Message::Drops(batch))
        {
            self.intake.queued.fetch_sub(packets, Ordering::AcqRel);
            self.intake.lost.fetch_add(packets, Ordering::AcqRel);
        }
    }

    /// Right before drops are handed over: what happened to a connection before its packet was dropped (its opening, a
    /// reject's RST) is then known to whoever makes the drop's record.
    fn flows(&mut self, ring: Option<&mut FlowRing>) {
        let Some(ring) = ring else { return };
        let told: Vec<_> = std::iter::from_fn(|| ring.pop()).take(MAX_FLOWS).collect();
        let count = told.len() as u64;
        if count > 0 && self.to_worker.try_send(Message::Flows(told)).is_err() {
            self.intake.lost_flows.fetch_add(count, Ordering::AcqRel);
        }
    }
}
