//! Where records go. Each sink has a thread, a bounded queue and a gapless `seq` of its own: one that is slow or gone holds up
//! neither the others nor the pipeline; what had no room is declared in its own stream.

pub mod fan_out;
pub mod file;
pub mod history;
pub mod k8s_events;
pub mod lines;
mod lost;
pub mod otlp;
pub mod queue;
pub mod reopen;
pub mod target;

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use crate::model::Str;
use crate::record::{Body, Fingerprint, Record, SCHEMA};
use lost::{Lost, Undeclared};
use queue::{Done, Entry, Patience, Queue};

/// Something that takes records in order.
pub trait Sink: Send {
    /// As records, metrics and logs name it.
    fn name(&self) -> String;

    /// The encoding's name.
    fn format(&self) -> &'static str;

    /// Writes records in order.
    fn deliver(&mut self, records: &[Arc<Record>], patience: Patience<'_>) -> Delivery;

    /// Whether whoever reads has gone, found out without writing.
    fn is_closed(&self) -> bool {
        false
    }
}

/// What became of records that were given to a sink.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Records from the front that got out.
    pub delivered: usize,
    /// Of those, how many the receiver did not want. Which ones, it does not say.
    pub rejected: u64,
    /// Why not all did.
    pub error: Option<SinkError>,
}

impl Delivery {
    pub fn all(records: &[Arc<Record>]) -> Delivery {
        Delivery { delivered: records.len(), ..Delivery::default() }
    }
}

/// Why records did not get out.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The reader went away: not an error, the end.
    #[error("the reader of the output has gone")]
    Closed,
    #[error("{name}: {error}")]
    Write { name: String, error: io::Error },
    /// The receiver said no, could not be reached for too long, or the sink is not open.
    #[error("{name}: {message}")]
    Refused { name: String, reason: &'static str, message: String },
}

impl SinkError {
    /// The `reason` of the loss that comes of it.
    pub fn reason(&self) -> &'static str {
        match self {
            SinkError::Closed => "closed",
            SinkError::Write { .. } => "write_failed",
            SinkError::Refused { reason, .. } => reason,
        }
    }
}

/// Numbers records, the same number in every sink, and says whose they are.
#[derive(Debug)]
pub struct Numbers {
    pub run: Str,
    pub cluster: Option<Str>,
    pub node: Option<Str>,
    next: AtomicU64,
}

impl Numbers {
    pub fn new(run: String, cluster: Option<String>, node: Option<String>) -> Numbers {
        let (cluster, node) = (cluster.map(Into::into), node.map(Into::into));
        Numbers { run: run.into(), cluster, node, next: AtomicU64::new(1) }
    }

    /// The next record; `seq` is each sink's own.
    pub fn record(&self, body: Body, fingerprint: Option<Fingerprint>, time: Timestamp) -> Record {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // The longest number has 20 digits.
        let mut id = String::with_capacity(self.run.len() + 1 + 20);
        // Writing to a String can't fail.
        _ = write!(id, "{}/{number}", self.run);
        Record {
            schema: SCHEMA.into(),
            body,
            fingerprint: Some(fingerprint.unwrap_or_else(|| Fingerprint::of_id(&id))),
            id,
            run: self.run.clone(),
            seq: 0,
            time,
            cluster: self.cluster.clone(),
            node: self.node.clone(),
        }
    }
}

/// Records given to a sink at once.
const BATCH: usize = 64;
/// A sink without work looks this often whether its reader has gone, and tries again to declare a loss.
const IDLE: Duration = Duration::from_secs(1);

/// Feeds a sink from its queue until that ends, or the sink's reader does.
pub fn run(mut sink: Box<dyn Sink>, queue: &Queue, numbers: &Numbers) {
    // Whatever ends this thread, nobody goes on waiting for it.
    let _end = End(queue);
    let mut feed = Feed { name: sink.name(), seq: 0, undeclared: Undeclared::default(), failing: false };
    while let Some(entries) = queue.take(BATCH, IDLE) {
        let closed = if entries.is_empty() && feed.undeclared.is_empty() {
            sink.is_closed()
        } else {
            feed.deliver(sink.as_mut(), entries, queue, numbers)
        };
        if closed {
            queue.abandon(Some(SinkError::Closed.to_string()));
            return;
        }
    }
    if !feed.undeclared.is_empty() {
        feed.deliver(sink.as_mut(), Vec::new(), queue, numbers);
    }
}

struct End<'a>(&'a Queue);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.abandon(None);
    }
}

struct Feed {
    name: String,
    /// Of the last record that got out.
    seq: u64,
    undeclared: Undeclared,
    /// The last write failed: said once in the log.
    failing: bool,
}

/// What a record in a batch stands for.
enum Meaning {
    Packets(u64),
    Declares(Lost),
}

impl Feed {
    /// Delivers entries behind the declarations of what was lost before them. True when the reader has gone.
    fn deliver(&mut self, sink: &mut dyn Sink, entries: Vec<Entry>, queue: &Queue, numbers: &Numbers) -> bool {
        let mut records = Vec::with_capacity(entries.len());
        let mut meanings = Vec::with_capacity(entries.len());
        // Not made by this thread.
        let mut others = Vec::with_capacity(entries.len());
        let declarations = self.undeclared.take().into_iter().map(Entry::Overflowed);
        for entry in declarations.chain(entries) {
            let (mut record, meaning) = match entry {
                Entry::Waiting(waiting) => (waiting.record, Meaning::Packets(waiting.packets)),
                Entry::Overflowed(lost) => {
                    let declaration = lost.declaration(&self.name);
                    (Arc::new(numbers.record(Body::Loss(declaration), None, lost.time())), Meaning::Declares(lost))
                }
            };
            // While another sink has it too, this one's is a copy.
            others.push(matches!(meaning, Meaning::Packets(_)) && Arc::get_mut(&mut record).is_some());
            Arc::make_mut(&mut record).seq = self.seq + records.len() as u64 + 1;
            records.push(record);
            meanings.push(meaning);
        }
        let delivery = sink.deliver(&records, Patience(queue));
        let delivered = delivery.delivered.min(records.len());
        self.seq += delivered as u64;
        let mut done = Done { records: delivered as u64, ..Done::default() };
        let (mut lost_packets, mut lost_records) = (0, 0);
        let reason = delivery.error.as_ref().map_or("write_failed", SinkError::reason);
        for (at, (record, meaning)) in records.iter().zip(meanings).enumerate() {
            match meaning {
                Meaning::Packets(packets) if at < delivered => done.written += packets,
                Meaning::Packets(packets) => {
                    lost_packets += packets;
                    lost_records += 1;
                    done.of.push((record, packets));
                    self.undeclared.add(Lost::new(reason, record, packets));
                }
                Meaning::Declares(_) if at < delivered => {}
                // Its number was never seen: `seq` stays gapless, and the loss is declared again.
                Meaning::Declares(lost) => self.undeclared.add(lost),
            }
        }
        if lost_records > 0 {
            done.lost.push((reason, lost_packets, lost_records));
        }
        if let (1.., Some(first), Some(last)) = (delivery.rejected, records.first(), records.last()) {
            let (count, packets) = (delivery.rejected.min(done.records), delivery.rejected.min(done.written));
            done.records -= count;
            done.written -= packets;
            done.lost.push(("rejected", packets, count));
            let mut rejected = Lost::new("rejected", first, packets).estimated();
            rejected.add(Lost::new("rejected", last, 0));
            self.undeclared.add(rejected);
        }
        let closed = matches!(delivery.error, Some(SinkError::Closed));
        self.log(delivery.error.as_ref().filter(|_| !closed));
        queue.settle(done, delivery.error.map(|error| error.to_string()));
        queue
            .give_back(records.into_iter().zip(others).filter_map(|(record, other)| other.then_some(record)).collect());
        closed
    }

    fn log(&mut self, error: Option<&SinkError>) {
        match error {
            Some(error) if !self.failing => {
                tracing::error!(%error, "records can't be written; they are counted as lost until it works again");
            }
            None if self.failing => tracing::info!(sink = self.name, "records can be written again"),
            _ => {}
        }
        self.failing = error.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Loss, LossStage};

    pub(super) fn loss() -> Loss {
        Loss {
            stage: LossStage::KernelRing,
            reason: "test".into(),
            of: None,
            count: None,
            estimate: false,
            last_time: None,
            sink: None,
            first_id: None,
            last_id: None,
        }
    }

    pub(super) fn numbers() -> Numbers {
        Numbers::new("a".into(), None, None)
    }

    pub(super) fn record(numbers: &Numbers) -> Record {
        numbers.record(Body::Loss(loss()), None, Timestamp::UNIX_EPOCH)
    }

    struct Taker;

    impl Sink for Taker {
        fn name(&self) -> String {
            "taker".into()
        }

        fn format(&self) -> &'static str {
            "none"
        }

        fn deliver(&mut self, records: &[Arc<Record>], _: Patience<'_>) -> Delivery {
            Delivery::all(records)
        }
    }

    /// Of two sinks the one that has a record first makes a copy: only the record itself goes back to who made it.
    #[test]
    fn a_copy_is_freed_by_its_sink() {
        let queues = [Queue::default(), Queue::default()];
        let record = Arc::new(record(&numbers()));
        for queue in &queues {
            queue.push(queue::Waiting::new(record.clone(), 1), Duration::ZERO);
        }
        drop(record);
        for queue in &queues {
            let mut feed = Feed { name: "taker".into(), seq: 0, undeclared: Undeclared::default(), failing: false };
            let entries = queue.take(BATCH, Duration::ZERO).unwrap();
            assert!(!feed.deliver(&mut Taker, entries, queue, &numbers()));
        }
        assert_eq!(queues.map(|queue| (queue.spent(), queue.counts().written)), [(0, 1), (1, 1)]);
    }
}
