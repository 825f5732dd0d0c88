//! The reader thread: drains the ring buffers. It must not block: when it falls behind, the kernel drops events.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::channel::{BATCH, Message};
use crate::kernel::aggregate::Aggregator;
use crate::kernel::attach::Attached;
use crate::kernel::counters::KernelCounters;
use crate::kernel::ring::{self, DropRing};
use crate::kernel::tc::FlowRing;
use crate::kernel::{AggregatedDrop, KernelDrop, SiteNames};
use crate::pipeline::accounting::Intake;

/// Bytes that the reader takes from the ring before it looks at anything else. Under a flood the ring is never empty.
const MAX_READ: u64 = 32 << 20;
/// Connection events in one message.
const MAX_EVENTS: usize = 4096;
/// Wait for events while none come. The reader notices a stop this late.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Wait for events while they come: the programs wake the reader at most once per tick.
const BUSY_WAIT: Duration = Duration::from_millis(5);
/// Time without events after which the next one wakes the reader: longer than a tick of any kernel (10 ms).
const IDLE_AFTER: Duration = Duration::from_millis(25);
/// Shortest time between two swaps of the kernel's maps, however often policies change.
const MIN_WINDOW: Duration = Duration::from_millis(500);
/// Longest time for a program to end that was running when it was detached.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// Period of the look for kernel modules that came or went. A drop inside a new module is looked up at once.
const MODULES: Duration = Duration::from_millis(200);

/// The parts of the kfree_skb hook that the reader uses.
pub struct DropInput {
    pub ring: DropRing,
    pub aggregator: Aggregator,
    /// Length of the aggregation window; zero without aggregation.
    pub window: Duration,
    pub names: SiteNames,
    pub attached: Attached,
    pub counters: Arc<KernelCounters>,
}

/// The parts of the tc hook that the reader uses.
pub struct TcInput {
    pub ring: FlowRing,
    /// The thread that attaches programs to new interfaces. It ends when `stop` is set.
    pub attacher: JoinHandle<()>,
}

/// Reads until `stop` is set, then detaches the hooks and reads what is left.
pub fn run(
    mut drops: Option<DropInput>,
    tc: Option<TcInput>,
    intake: &Intake,
    stop: &AtomicBool,
    to_worker: &SyncSender<Message>,
) {
    let (mut flows, attacher) = tc.map(|tc| (tc.ring, tc.attacher)).unzip();
    let mut forwarder = Forwarder { intake, to_worker, batch: Vec::new() };
    read_until_stopped(&mut forwarder, &mut drops, &mut flows, stop);
    if attacher.is_some_and(|attacher| attacher.join().is_err()) {
        tracing::error!("the thread that attaches tc programs panicked");
    }
    let Some(drops) = &mut drops else {
        forwarder.read(None, flows.as_mut());
        return;
    };
    if drops.attached.stays() {
        leave_to_next_agent(&mut forwarder, drops, flows.as_mut());
        return;
    }
    drops.attached.detach();
    // A program may still be running on another CPU. The sums agree when it has ended.
    let deadline = Instant::now() + LAST_EVENTS;
    loop {
        let balanced = drops.counters.read().is_ok_and(|reading| {
            let totals = reading.totals;
            totals.matched == totals.emitted + totals.aggregated + totals.lost
        });
        forwarder.read(Some(drops), flows.as_mut());
        if balanced || Instant::now() > deadline {
            break;
        }
        std::thread::yield_now();
    }
    let DropInput { aggregator, names, attached, .. } = drops;
    if let Err(error) = aggregator.take_last(|drop| forwarder.add(drop, names, attached, flows.as_mut())) {
        tracing::error!(%error, "the last counts of repeated packets cannot be read");
    }
    forwarder.flush(flows.as_mut());
}

fn read_until_stopped(
    forwarder: &mut Forwarder<'_>,
    drops: &mut Option<DropInput>,
    flows: &mut Option<FlowRing>,
    stop: &AtomicBool,
) {
    let rings: Vec<_> = drops.iter().map(|d| d.ring.as_raw_fd()).chain(flows.iter().map(|f| f.as_raw_fd())).collect();
    let (mut modules_checked, mut swapped, mut last_event) = (Instant::now(), Instant::now(), Instant::now());
    while !stop.load(Ordering::Acquire) {
        ring::wait(&rings, if last_event.elapsed() < IDLE_AFTER { BUSY_WAIT } else { IDLE_WAIT });
        if let Some(DropInput { names, attached, .. }) = drops
            && modules_checked.elapsed() > MODULES
        {
            modules_checked = Instant::now();
            if names.modules_changed() {
                names.refresh(attached);
            }
        }
        if forwarder.read(drops.as_mut(), flows.as_mut()) {
            last_event = Instant::now();
        }
        let is_due = |window: Duration| {
            let requested =
                swapped.elapsed() >= MIN_WINDOW && forwarder.intake.swap_requested.swap(false, Ordering::AcqRel);
            !window.is_zero() && (requested || swapped.elapsed() >= window)
        };
        if let Some(drops) = drops.as_mut().filter(|drops| is_due(drops.window)) {
            swapped = Instant::now();
            forwarder.end_window(drops, flows.as_mut());
        }
    }
}

/// Forwards what was counted so far and leaves the hook attached: what the programs count from now on is for the next agent.
fn leave_to_next_agent(forwarder: &mut Forwarder<'_>, drops: &mut DropInput, mut flows: Option<&mut FlowRing>) {
    forwarder.end_window(drops, flows.as_deref_mut());
    let DropInput { aggregator, names, attached, .. } = drops;
    for drop in aggregator.take_pending() {
        forwarder.add(drop, names, attached, flows.as_deref_mut());
    }
    forwarder.flush(flows);
    drops.counters.close(drops.attached.handover());
    tracing::info!("the kfree_skb hook stays attached for the next agent; `netpol-trace doctor --cleanup` removes it");
}

/// Forwards drops and connection events to the worker.
struct Forwarder<'a> {
    intake: &'a Intake,
    to_worker: &'a SyncSender<Message>,
    /// Drops of the next message.
    batch: Vec<KernelDrop>,
}

impl Forwarder<'_> {
    /// Drains the rings. Returns true if there were drops.
    fn read(&mut self, drops: Option<&mut DropInput>, mut flows: Option<&mut FlowRing>) -> bool {
        let mut found = 0;
        if let Some(DropInput { ring, aggregator, names, attached, .. }) = drops {
            while found < MAX_READ
                && let Some(event) = ring.pop()
            {
                found += ring::ENTRY;
                if let Some(drop) = aggregator.add(&event) {
                    self.add(drop, names, attached, flows.as_deref_mut());
                }
            }
            self.intake.ring_peak.fetch_max(found, Ordering::AcqRel);
        }
        self.flush(flows);
        found > 0
    }

    /// Ends an aggregation window: swaps the kernel's maps and forwards the counts.
    fn end_window(&mut self, drops: &mut DropInput, mut flows: Option<&mut FlowRing>) {
        let swapped = drops.aggregator.swap();
        // First reads every event that was sent before the swap, so that each count finds its first packet.
        self.read(Some(drops), flows.as_deref_mut());
        let DropInput { aggregator, names, attached, .. } = drops;
        let taken =
            swapped.and_then(|()| aggregator.take(|drop| self.add(drop, names, attached, flows.as_deref_mut())));
        if let Err(error) = taken {
            tracing::error!(%error, "the counts of repeated packets cannot be read; they stay in the kernel until the next attempt");
        }
        self.flush(flows);
    }

    /// Resolves the names of a drop's site and puts the drop into the next batch.
    fn add(
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
            self.batch.reserve_exact(BATCH);
        }
    }

    /// Sends the batch. Without room in the queue its packets are counted as lost.
    fn flush(&mut self, flows: Option<&mut FlowRing>) {
        self.flows(flows);
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        let packets = batch.iter().map(|drop| drop.packet_count.packets()).sum();
        self.intake.read.fetch_add(packets, Ordering::AcqRel);
        self.intake.queued.fetch_add(packets, Ordering::AcqRel);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.to_worker.try_send(Message::Drops(batch))
        {
            self.intake.queued.fetch_sub(packets, Ordering::AcqRel);
            self.intake.lost.fetch_add(packets, Ordering::AcqRel);
        }
    }

    /// Forwards connection events. They go before the drops, so that the worker knows of a connection's opening, and of a reject's RST,
    /// when it builds the record of the drop.
    fn flows(&mut self, ring: Option<&mut FlowRing>) {
        let Some(ring) = ring else { return };
        let events: Vec<_> = std::iter::from_fn(|| ring.pop()).take(MAX_EVENTS).collect();
        let count = events.len() as u64;
        if count > 0 && self.to_worker.try_send(Message::Connections(events)).is_err() {
            self.intake.lost_connections.fetch_add(count, Ordering::AcqRel);
        }
    }
}
