//! Empties the kernel's ring: the only thread that the kernel waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use super::worker::Message;
use crate::books::Intake;
use crate::kernel::attach::Attached;
use crate::kernel::counters::Counters;
use crate::kernel::ring::Ring;
use crate::kernel::{Names, RawDrop};

/// Packets handed over at once.
pub const BATCH: usize = 128;
/// How long the reader may be deaf to a stop.
const WAIT: Duration = Duration::from_millis(100);
/// How long a program that was running when it was detached may take to end.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// Reads until told to stop, then detaches and reads what is left.
pub fn run(
    mut ring: Ring,
    mut names: Names,
    mut attached: Attached,
    counters: &Counters,
    intake: &Intake,
    stop: &AtomicBool,
    to_worker: &SyncSender<Message>,
) {
    while !stop.load(Ordering::Acquire) {
        ring.wait(WAIT);
        drain(&mut ring, &mut names, &mut attached, intake, to_worker);
    }
    attached.detach();
    // A program may still be running on another CPU: the books balance when it has ended.
    let deadline = Instant::now() + LAST_RECORDS;
    loop {
        let balanced = counters.read().is_ok_and(|r| r.totals.matched == r.totals.emitted + r.totals.lost);
        drain(&mut ring, &mut names, &mut attached, intake, to_worker);
        if balanced || Instant::now() > deadline {
            break;
        }
        std::thread::yield_now();
    }
}

fn drain(
    ring: &mut Ring,
    names: &mut Names,
    attached: &mut Attached,
    intake: &Intake,
    to_worker: &SyncSender<Message>,
) {
    let mut batch = Vec::new();
    while let Some(event) = ring.pop() {
        intake.read.fetch_add(1, Ordering::AcqRel);
        if names.is_new(&event) && names.modules_changed() {
            names.refresh(attached);
        }
        let facts = names.resolve(&event);
        batch.push(RawDrop { event, facts });
        if batch.len() == BATCH {
            send(std::mem::take(&mut batch), intake, to_worker);
        }
    }
    if !batch.is_empty() {
        send(batch, intake, to_worker);
    }
}

fn send(batch: Vec<RawDrop>, intake: &Intake, to_worker: &SyncSender<Message>) {
    let count = batch.len() as u64;
    intake.queued.fetch_add(count, Ordering::AcqRel);
    if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = to_worker.try_send(Message::Drops(batch)) {
        intake.queued.fetch_sub(count, Ordering::AcqRel);
        intake.lost.fetch_add(count, Ordering::AcqRel);
    }
}
