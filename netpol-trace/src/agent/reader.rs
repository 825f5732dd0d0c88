//! Empties the kernel's ring: the only thread that the kernel waits for.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::worker::Message;
use crate::books::Intake;
use crate::kernel::attach::Attached;
use crate::kernel::counters::Counters;
use crate::kernel::ring::{self, Ring};
use crate::kernel::tc::FlowRing;
use crate::kernel::{Names, RawDrop};

/// Packets handed over at once.
pub const BATCH: usize = 128;
/// Records of connections handed over at once.
const MAX_FLOWS: usize = 4096;
/// How long the reader may be deaf to a stop.
const WAIT: Duration = Duration::from_millis(100);
/// How long a program that was running when it was detached may take to end.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// How often to look for modules that came or went. What a new one drops is seen before that.
const MODULES: Duration = Duration::from_millis(200);

/// The hook on freed packets.
pub struct Drops {
    pub ring: Ring,
    pub names: Names,
    pub attached: Attached,
    pub counters: Arc<Counters>,
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
    let mut send = Send { intake, to_worker };
    let mut looked = Instant::now();
    while !stop.load(Ordering::Acquire) {
        ring::wait(&rings, WAIT);
        if looked.elapsed() > MODULES {
            looked = Instant::now();
            if let Some(Drops { names, attached, .. }) = &mut drops
                && names.modules_changed()
            {
                names.refresh(attached);
            }
        }
        send.all(drops.as_mut(), flows.as_mut());
    }
    if attacher.is_some_and(|attacher| attacher.join().is_err()) {
        tracing::error!("the thread that attaches tc programs panicked");
    }
    if let Some(drops) = &mut drops {
        drops.attached.detach();
    }
    // A program may still be running on another CPU: the books balance when it has ended.
    let deadline = Instant::now() + LAST_RECORDS;
    loop {
        let balanced = drops.as_ref().is_none_or(|drops| {
            drops.counters.read().is_ok_and(|r| r.totals.matched == r.totals.emitted + r.totals.lost)
        });
        send.all(drops.as_mut(), flows.as_mut());
        if balanced || Instant::now() > deadline {
            break;
        }
        std::thread::yield_now();
    }
}

struct Send<'a> {
    intake: &'a Intake,
    to_worker: &'a SyncSender<Message>,
}

impl Send<'_> {
    fn all(&mut self, drops: Option<&mut Drops>, mut flows: Option<&mut FlowRing>) {
        if let Some(Drops { ring, names, attached, .. }) = drops {
            let mut batch = Vec::new();
            let mut found = 0;
            while let Some(event) = ring.pop() {
                self.intake.read.fetch_add(1, Ordering::AcqRel);
                found += ring::ENTRY;
                names.meet(&event, attached);
                let facts = names.resolve(&event);
                batch.push(RawDrop { event, facts });
                if batch.len() == BATCH {
                    self.flows(flows.as_deref_mut());
                    self.drops(std::mem::take(&mut batch));
                }
            }
            if !batch.is_empty() {
                self.flows(flows.as_deref_mut());
                self.drops(batch);
            }
            self.intake.ring_peak.fetch_max(found, Ordering::AcqRel);
        }
        self.flows(flows);
    }

    fn drops(&mut self, batch: Vec<RawDrop>) {
        let count = batch.len() as u64;
        self.intake.queued.fetch_add(count, Ordering::AcqRel);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.to_worker.try_send(Message::Drops(batch))
        {
            self.intake.queued.fetch_sub(count, Ordering::AcqRel);
            self.intake.lost.fetch_add(count, Ordering::AcqRel);
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
