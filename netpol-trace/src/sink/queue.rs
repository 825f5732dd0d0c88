//! The bounded queue in front of each sink, and the sink's own books: what was handed to it is written, held or lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::lost::Lost;
use crate::model::{Cause, LossReason, SINK_QUEUE_RECORDS};
use crate::record::{Body, Record};

/// What they may weigh together, in octets. Sinks share a record, so several queues don't weigh more than the longest.
const MAX_WEIGHT: usize = 32 << 20;
/// Records that are done with and wait for the pipeline's thread to free them.
const MAX_SPENT: usize = 128;
/// After its wake-up a sink lets records gather: while it does, nobody has to wake it. A wake-up for each record takes longer than
/// the record.
const GATHER: Duration = Duration::from_millis(1);

/// A record on its way to a sink.
#[derive(Debug)]
pub struct Waiting {
    pub record: Arc<Record>,
    /// Packets that it stands for in the books.
    pub packets: u64,
    weight: usize,
}

impl Waiting {
    pub fn new(record: Arc<Record>, packets: u64) -> Waiting {
        let weight = weight(&record);
        Waiting { record, packets, weight }
    }
}

#[derive(Debug)]
pub enum Entry {
    Waiting(Waiting),
    /// What had no room at this place of the stream.
    Overflowed(Lost),
}

/// A sink's books, in packets, and its records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub written: u64,
    pub held: u64,
    pub lost: u64,
    /// Records written, the declarations of losses among them.
    pub records: u64,
    pub records_lost: u64,
    /// Records that wait.
    pub queued: usize,
}

/// What became of entries that a sink took.
#[derive(Debug, Default)]
pub struct Done<'a> {
    /// Packets and records written.
    pub written: u64,
    pub records: u64,
    /// Reason, packets and records lost.
    pub lost: Vec<(LossReason, u64, u64)>,
    /// The records that were lost, with their packets; those that a receiver did not want are not known.
    pub of: Vec<(&'a Record, u64)>,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    weight: usize,
    overflow: Option<Lost>,
    /// Done with. Whoever made them frees them, one for each that it makes: the allocator has them at hand then, and two threads
    /// need not wait for each other in it, which took a third of a record's time.
    spent: Vec<Arc<Record>>,
    counts: Counts,
    /// Records lost, by reason, and packets lost, by cause.
    reasons: BTreeMap<LossReason, u64>,
    causes: BTreeMap<Cause, u64>,
    /// The sink waits for something to do, and nobody has told it yet that there is.
    idle: bool,
    /// Who waits for room, or for the end.
    waiting: usize,
    /// The sink is at work on what it took.
    busy: bool,
    /// Somebody has waited for room in vain, and the sink has not moved since.
    stalled: bool,
    /// Nothing more comes, and what is there must be out by then.
    stop_by: Option<Instant>,
    ended: bool,
    /// Whoever reads has gone, or the sink's thread has ended.
    gone: bool,
    error: Option<String>,
}

impl State {
    /// After an overflow until half of it is free again: a loss is one record, not one for every other record.
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

/// Learns of packets whose lines were written.
pub struct Written(pub Box<dyn Fn(u64) + Send + Sync>);

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Written")
    }
}

#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    /// Told how many packets' lines were written, each time.
    written: OnceLock<Written>,
    filled: Condvar,
    emptied: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_emptied<'a>(&self, mut state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        state.waiting += 1;
        state = self.emptied.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }

    fn tell_emptied(&self, state: MutexGuard<'_, State>) {
        let waiting = state.waiting > 0;
        drop(state);
        // A wake-up is a system call, whether anybody sleeps or not.
        if waiting {
            self.emptied.notify_all();
        }
    }

    /// Appends a record, or counts it as lost when there is no room. Waits for room no longer than `patience`, and not again
    /// before the sink has moved.
    pub fn push(&self, waiting: Waiting, patience: Duration) {
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
            let lost = Lost::new(reason, &waiting.record, waiting.packets);
            match &mut state.overflow {
                Some(overflow) => overflow.add(lost),
                None => state.overflow = Some(lost),
            }
            return;
        }
        if let Some(overflow) = state.overflow.take() {
            state.entries.push_back(Entry::Overflowed(overflow));
        }
        state.counts.held += waiting.packets;
        state.weight += waiting.weight;
        state.entries.push_back(Entry::Waiting(waiting));
        let idle = std::mem::take(&mut state.idle);
        let spent = state.spent.pop();
        drop(state);
        drop(spent);
        if idle {
            self.filled.notify_all();
        }
    }

    /// The next entries, at most `count`; none after `timeout`; `None` when the queue has ended and is empty.
    pub fn take(&self, count: usize, timeout: Duration) -> Option<Vec<Entry>> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if state.entries.is_empty()
                && let Some(overflow) = state.overflow.take()
            {
                state.entries.push_back(Entry::Overflowed(overflow));
            }
            if !state.entries.is_empty() {
                let count = count.min(state.entries.len());
                let taken: Vec<Entry> = state.entries.drain(..count).collect();
                let weight: usize =
                    taken.iter().map(|entry| if let Entry::Waiting(w) = entry { w.weight } else { 0 }).sum();
                state.weight -= weight;
                state.busy = true;
                self.tell_emptied(state);
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
            state = self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.idle = false;
            if !state.entries.is_empty() {
                let few = |state: &mut State| !state.ended && state.entries.len() < count;
                let gathered = self.filled.wait_timeout_while(state, GATHER, few);
                state = gathered.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Tells `written` from now on.
    pub fn on_written(&self, written: Written) {
        let _ = self.written.set(written);
    }

    /// Says what became of what was taken.
    pub fn settle(&self, done: Done<'_>, error: Option<String>) {
        if let Some(Written(tell)) = self.written.get() {
            tell(done.written);
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
        self.tell_emptied(state);
    }

    /// Takes back what was taken and is done with; not a sink's own copies, which it frees itself.
    pub fn give_back(&self, mut records: Vec<Arc<Record>>) {
        let mut state = self.lock();
        let room = MAX_SPENT.saturating_sub(state.spent.len()).min(records.len());
        state.spent.extend(records.drain(..room));
        // The rest is freed here, when nobody waits for the lock.
        drop(state);
    }

    /// How many wait to be freed.
    #[cfg(test)]
    pub fn spent(&self) -> usize {
        self.lock().spent.len()
    }

    /// The sink has ended: what still waits, and all that comes, is lost.
    pub fn abandon(&self, error: Option<String>) {
        let mut state = self.lock();
        state.gone = true;
        state.busy = false;
        state.error = error.or(state.error.take());
        let mut left = 0_usize;
        for entry in std::mem::take(&mut state.entries) {
            if let Entry::Waiting(waiting) = entry {
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
        state.spent = Vec::new();
        self.tell_emptied(state);
    }

    pub fn is_gone(&self) -> bool {
        self.lock().gone
    }

    pub fn counts(&self) -> Counts {
        let state = self.lock();
        Counts { queued: state.entries.len(), ..state.counts }
    }

    /// Records lost so far, by reason.
    pub fn reasons(&self) -> BTreeMap<LossReason, u64> {
        self.lock().reasons.clone()
    }

    /// Packets lost so far, by cause.
    pub fn lost_causes(&self) -> BTreeMap<Cause, u64> {
        self.lock().causes.clone()
    }

    /// Says why nothing can be written, until an entry is settled.
    pub fn failing(&self, error: String) {
        self.lock().error = Some(error);
    }

    /// Why the last write failed; `None` after one that succeeded.
    pub fn error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Nothing should wait longer than until `by`: a sink that retries gives up then.
    pub fn stop_by(&self, by: Instant) {
        self.lock().stop_by = Some(by);
        self.filled.notify_all();
    }

    /// Waits until all is out, or whoever should take it has gone; not longer than `patience` without any progress.
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

    /// Nothing more comes.
    pub fn end(&self) {
        self.lock().ended = true;
        self.filled.notify_all();
    }
}

/// How long a sink may go on trying.
#[derive(Debug, Clone, Copy)]
pub struct Patience<'a>(pub &'a Queue);

impl Patience<'_> {
    /// Waits `time`, or less when the agent is to stop; false when there is no time left at all.
    pub fn pause(self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.0.lock();
        loop {
            let now = Instant::now();
            let by = state.stop_by.map_or(until, |by| by.min(until));
            if now >= by {
                return state.stop_by.is_none_or(|by| now < by);
            }
            state = self.0.filled.wait_timeout(state, by - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says why nothing gets out, while the sink goes on trying.
    pub fn failing(self, error: String) {
        self.0.failing(error);
    }

    /// What is left for one attempt that may take `most`.
    pub fn left(self, most: Duration) -> Duration {
        let by = self.0.lock().stop_by;
        by.map_or(most, |by| by.saturating_duration_since(Instant::now()).min(most))
    }
}

/// About what a record takes in memory: what can be long in it are labels and lists of policies.
fn weight(record: &Record) -> usize {
    const FIXED: usize = 2048;
    const POLICY: usize = 200;
    let (ends, verdict) = match &record.body {
        Body::Drop(drop) => ([&drop.source, &drop.destination], &drop.verdict),
        Body::Unanswered(silent) => ([&silent.source, &silent.destination], &silent.verdict),
        _ => return FIXED,
    };
    let labels = |end: &crate::record::Endpoint| -> usize {
        let pod = end.pod.iter().flat_map(|pod| &pod.labels);
        pod.map(|(key, value)| key.len() + value.len() + 64).sum()
    };
    let policies = verdict.iter().flat_map(|v| [&v.egress, &v.ingress]).map(|side| side.isolated_by.len());
    FIXED + ends.into_iter().map(labels).sum::<usize>() + policies.sum::<usize>() * POLICY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::tests::{numbers, record};

    /// What a sink is done with is freed one by one by who makes more, and no more than [`MAX_SPENT`] waits for that.
    #[test]
    fn who_makes_records_frees_them() {
        let queue = Queue::default();
        let many: Vec<_> = (0..2 * MAX_SPENT).map(|_| Arc::new(record(&numbers()))).collect();
        let seen: Vec<_> = many.iter().map(Arc::downgrade).collect();
        let left = || seen.iter().filter(|record| record.strong_count() > 0).count();
        queue.give_back(many);
        assert_eq!(left(), MAX_SPENT);
        for made in 1..=MAX_SPENT {
            queue.push(Waiting::new(Arc::new(record(&numbers())), 1), Duration::ZERO);
            assert_eq!(left(), MAX_SPENT - made);
        }
    }
}
