//! The bounded queue before each sink, with the sink's accounting: every record is written, held or lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use super::lost::LostRange;
use crate::lock::IgnorePoison;
use crate::model::{Cause, LossReason, SINK_QUEUE_RECORDS};
use crate::record::{Body, Record};

/// The most bytes of a queue's records. Sinks share records, so that several queues take no more memory than the longest.
const MAX_WEIGHT: usize = 32 << 20;
/// The most finished records that wait for the pipeline's thread to free them.
const MAX_FINISHED: usize = 128;
/// How long a sink waits for more records after a wake-up. A wake-up for each record would cost more than the record.
const GATHER: Duration = Duration::from_millis(1);

/// A record in a queue.
#[derive(Debug)]
pub struct QueuedRecord {
    pub record: Arc<Record>,
    /// Packets that the record stands for.
    pub packets: u64,
    weight: usize,
}

impl QueuedRecord {
    pub fn new(record: Arc<Record>, packets: u64) -> QueuedRecord {
        let weight = weight(&record);
        QueuedRecord { record, packets, weight }
    }
}

#[derive(Debug)]
pub enum QueueEntry {
    Record(QueuedRecord),
    /// Records for which the queue had no room, at this position of the stream.
    Overflowed(LostRange),
}

/// A sink's counts of packets and of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SinkCounts {
    pub written: u64,
    pub held: u64,
    pub lost: u64,
    /// Records written, with declarations of losses.
    pub records: u64,
    pub records_lost: u64,
    /// Records in the queue.
    pub queued: usize,
}

/// The result of writing a batch of entries.
#[derive(Debug, Default)]
pub struct BatchOutcome<'a> {
    /// Packets and records written.
    pub written: u64,
    pub records: u64,
    /// Losses: reason, packets and records.
    pub lost: Vec<(LossReason, u64, u64)>,
    /// The lost records with their packets; which records a receiver rejected is unknown.
    pub of: Vec<(&'a Record, u64)>,
}

#[derive(Debug, Default)]
struct QueueState {
    entries: VecDeque<QueueEntry>,
    weight: usize,
    overflow: Option<LostRange>,
    /// Finished records. The pipeline's thread frees one for each record that it makes, so that glibc reuses the memory of that thread's arena
    /// and the sink's thread does not contend for the arena's lock.
    finished: Vec<Arc<Record>>,
    counts: SinkCounts,
    /// Records lost, by reason.
    reasons: BTreeMap<LossReason, u64>,
    /// Packets lost, by cause.
    causes: BTreeMap<Cause, u64>,
    /// The sink waits for entries, and no thread has woken it yet.
    idle: bool,
    /// The number of threads that wait for room or for the end.
    waiting: usize,
    /// The sink is writing a batch.
    busy: bool,
    /// A thread waited for room in vain, and the sink has written nothing since.
    stalled: bool,
    /// The time at which a sink that retries must give up, because the agent stops.
    stop_by: Option<Instant>,
    /// No more records will come.
    ended: bool,
    /// The reader has gone, or the sink's thread has ended.
    gone: bool,
    error: Option<String>,
}

impl QueueState {
    /// After an overflow the queue counts as full until half of it is free: so a loss is one declaration and not one for every other record.
    fn is_full(&self) -> bool {
        let part = if self.overflow.is_some() { 2 } else { 1 };
        self.entries.len() >= SINK_QUEUE_RECORDS / part || self.weight >= MAX_WEIGHT / part
    }

    fn lost_cause(&mut self, record: &Record, packets: u64) {
        if let Body::Drop(drop) = &record.body {
            *self.causes.entry(drop.cause).or_default() += packets;
        }
    }
}

/// Called with the number of packets whenever records were written.
pub struct OnWritten(pub Box<dyn Fn(u64) + Send + Sync>);

impl std::fmt::Debug for OnWritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnWritten")
    }
}

#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<QueueState>,
    written: OnceLock<OnWritten>,
    filled: Condvar,
    emptied: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().ignore_poison()
    }

    fn wait_emptied<'a>(&self, mut state: MutexGuard<'a, QueueState>, most: Duration) -> MutexGuard<'a, QueueState> {
        state.waiting += 1;
        state = self.emptied.wait_timeout(state, most).ignore_poison().0;
        state.waiting -= 1;
        state
    }

    fn notify_emptied(&self, state: MutexGuard<'_, QueueState>) {
        let waiting = state.waiting > 0;
        drop(state);
        // A wake-up is a system call even if no thread waits.
        if waiting {
            self.emptied.notify_all();
        }
    }

    /// Appends a record, or counts it as lost if there is no room. Waits for room for at most `patience`; after a wait in vain does not wait
    /// again before the sink has written a batch.
    pub fn push(&self, waiting: QueuedRecord, patience: Duration) {
        let mut state = self.lock();
        let by = Instant::now() + patience;
        while state.is_full() && !state.stalled && !state.gone {
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.stalled = true;
                break;
            }
            state = self.wait_emptied(state, left);
        }
        if state.gone || state.is_full() {
            let reason = if state.gone { LossReason::Closed } else { LossReason::QueueFull };
            state.counts.lost += waiting.packets;
            state.counts.records_lost += 1;
            *state.reasons.entry(reason).or_default() += 1;
            state.lost_cause(&waiting.record, waiting.packets);
            let lost = LostRange::new(reason, &waiting.record, waiting.packets);
            match &mut state.overflow {
                Some(overflow) => overflow.add(lost),
                None => state.overflow = Some(lost),
            }
            return;
        }
        if let Some(overflow) = state.overflow.take() {
            state.entries.push_back(QueueEntry::Overflowed(overflow));
        }
        state.counts.held += waiting.packets;
        state.weight += waiting.weight;
        state.entries.push_back(QueueEntry::Record(waiting));
        let idle = std::mem::take(&mut state.idle);
        let finished = state.finished.pop();
        drop(state);
        drop(finished);
        if idle {
            self.filled.notify_all();
        }
    }

    /// Takes the next entries, at most `count`. Returns no entries after `timeout`, and `None` if the queue has ended and is empty.
    pub fn take(&self, count: usize, timeout: Duration) -> Option<Vec<QueueEntry>> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if state.entries.is_empty()
                && let Some(overflow) = state.overflow.take()
            {
                state.entries.push_back(QueueEntry::Overflowed(overflow));
            }
            if !state.entries.is_empty() {
                let count = count.min(state.entries.len());
                let taken: Vec<QueueEntry> = state.entries.drain(..count).collect();
                let weight: usize =
                    taken.iter().map(|entry| if let QueueEntry::Record(w) = entry { w.weight } else { 0 }).sum();
                state.weight -= weight;
                state.busy = true;
                self.notify_emptied(state);
                return Some(taken);
            }
            if state.ended {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(Vec::new());
            }
            state.idle = true;
            state = self.filled.wait_timeout(state, left).ignore_poison().0;
            state.idle = false;
            if !state.entries.is_empty() {
                let few = |state: &mut QueueState| !state.ended && state.entries.len() < count;
                let gathered = self.filled.wait_timeout_while(state, GATHER, few);
                state = gathered.ignore_poison().0;
            }
        }
    }

    /// Sets the callback for written packets, once.
    pub fn on_written(&self, written: OnWritten) {
        let _ = self.written.set(written);
    }

    /// Takes the result of the batch that the sink took last.
    pub fn complete(&self, done: BatchOutcome<'_>, error: Option<String>) {
        if let Some(OnWritten(callback)) = self.written.get() {
            callback(done.written);
        }
        let mut state = self.lock();
        let lost: u64 = done.lost.iter().map(|(_, packets, _)| packets).sum();
        state.counts.held = state.counts.held.saturating_sub(done.written + lost);
        state.counts.written += done.written;
        state.counts.records += done.records;
        state.counts.lost += lost;
        for (reason, _, records) in done.lost {
            state.counts.records_lost += records;
            *state.reasons.entry(reason).or_default() += records;
        }
        for (record, packets) in done.of {
            state.lost_cause(record, packets);
        }
        state.error = error;
        state.busy = false;
        state.stalled = false;
        self.notify_emptied(state);
    }

    /// Returns finished records to the thread that made them. A sink frees its own copies itself.
    pub fn recycle(&self, mut records: Vec<Arc<Record>>) {
        let mut state = self.lock();
        let room = MAX_FINISHED.saturating_sub(state.finished.len()).min(records.len());
        state.finished.extend(records.drain(..room));
        // The rest is freed here, after the lock was released.
        drop(state);
    }

    /// The number of finished records.
    #[cfg(test)]
    pub fn finished(&self) -> usize {
        self.lock().finished.len()
    }

    /// The sink has ended: counts the records in the queue, and all later ones, as lost.
    pub fn abandon(&self, error: Option<String>) {
        let mut state = self.lock();
        state.gone = true;
        state.busy = false;
        state.error = error.or(state.error.take());
        let mut left = 0_usize;
        for entry in std::mem::take(&mut state.entries) {
            if let QueueEntry::Record(waiting) = entry {
                left += 1;
                state.lost_cause(&waiting.record, waiting.packets);
            }
        }
        state.counts.records_lost += left as u64;
        if left > 0 {
            *state.reasons.entry(LossReason::Closed).or_default() += left as u64;
        }
        state.counts.lost += std::mem::take(&mut state.counts.held);
        state.weight = 0;
        state.finished = Vec::new();
        self.notify_emptied(state);
    }

    pub fn is_gone(&self) -> bool {
        self.lock().gone
    }

    pub fn counts(&self) -> SinkCounts {
        let state = self.lock();
        SinkCounts { queued: state.entries.len(), ..state.counts }
    }

    /// Records lost so far, by reason.
    pub fn reasons(&self) -> BTreeMap<LossReason, u64> {
        self.lock().reasons.clone()
    }

    /// Packets lost so far, by cause.
    pub fn lost_causes(&self) -> BTreeMap<Cause, u64> {
        self.lock().causes.clone()
    }

    /// Sets the error of a sink that goes on trying; the result of the batch replaces it.
    pub fn failing(&self, error: String) {
        self.lock().error = Some(error);
    }

    /// Why the last write failed; `None` after a successful one.
    pub fn error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Makes a sink that retries give up at `by`.
    pub fn stop_by(&self, by: Instant) {
        self.lock().stop_by = Some(by);
        self.filled.notify_all();
    }

    /// Waits until the queue is written or the reader has gone, for at most `patience` without progress. Returns false after that.
    pub fn drained(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        let (mut seen, mut by) = (None, Instant::now());
        loop {
            if state.gone || state.entries.is_empty() && state.overflow.is_none() && !state.busy {
                return true;
            }
            let progress = Some((state.counts.records, state.counts.records_lost));
            if progress != seen {
                (seen, by) = (progress, Instant::now() + patience);
            }
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.wait_emptied(state, left);
        }
    }

    /// Ends the queue: no more records will come.
    pub fn end(&self) {
        self.lock().ended = true;
        self.filled.notify_all();
    }
}

/// The time that a sink has for retries: until the agent stops.
#[derive(Debug, Clone, Copy)]
pub struct Patience<'a>(pub &'a Queue);

impl Patience<'_> {
    /// Waits for `time`, or less if the agent stops. Returns false if no time is left.
    pub fn pause(self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.0.lock();
        loop {
            let now = Instant::now();
            let by = state.stop_by.map_or(until, |by| by.min(until));
            if now >= by {
                return state.stop_by.is_none_or(|by| now < by);
            }
            state = self.0.filled.wait_timeout(state, by - now).ignore_poison().0;
        }
    }

    /// Sets the sink's error while it goes on trying.
    pub fn failing(self, error: String) {
        self.0.failing(error);
    }

    /// The time left for one attempt, at most `most`.
    pub fn left(self, most: Duration) -> Duration {
        let by = self.0.lock().stop_by;
        by.map_or(most, |by| by.saturating_duration_since(Instant::now()).min(most))
    }
}

/// The approximate size of a record in memory. Only labels and lists of policies can be long.
fn weight(record: &Record) -> usize {
    const FIXED: usize = 2048;
    const POLICY: usize = 200;
    let (endpoints, verdict) = match &record.body {
        Body::Drop(drop) => ([&drop.source, &drop.destination], &drop.verdict),
        Body::Unanswered(record) => ([&record.source, &record.destination], &record.verdict),
        _ => return FIXED,
    };
    let labels = |endpoint: &crate::record::Endpoint| -> usize {
        let pod = endpoint.pod.iter().flat_map(|pod| &pod.labels);
        pod.map(|(key, value)| key.len() + value.len() + 64).sum()
    };
    let policies = verdict.iter().flat_map(|v| [&v.egress, &v.ingress]).map(|side| side.isolated_by.len());
    FIXED + endpoints.into_iter().map(labels).sum::<usize>() + policies.sum::<usize>() * POLICY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::tests::{ids, record};

    /// A push frees one finished record, and no more than [`MAX_FINISHED`] wait for that.
    #[test]
    fn the_thread_that_makes_records_frees_them() {
        let queue = Queue::default();
        let many: Vec<_> = (0..2 * MAX_FINISHED).map(|_| Arc::new(record(&ids()))).collect();
        let seen: Vec<_> = many.iter().map(Arc::downgrade).collect();
        let left = || seen.iter().filter(|record| record.strong_count() > 0).count();
        queue.recycle(many);
        assert_eq!(left(), MAX_FINISHED);
        for made in 1..=MAX_FINISHED {
            queue.push(QueuedRecord::new(Arc::new(record(&ids())), 1), Duration::ZERO);
            assert_eq!(left(), MAX_FINISHED - made);
        }
    }
}
