//! Writes records to their outputs. Each sink has a thread, a bounded queue and a `seq` without gaps, so that a slow or broken sink delays
//! neither the pipeline nor the other sinks. Each sink declares records for which its queue had no room in its own stream.

pub mod fan_out;
pub mod file;
pub mod history;
pub mod k8s_events;
mod lost;
pub mod otlp;
pub mod queue;
pub mod reopen;
pub mod spec;
pub mod stdout;

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use crate::model::{LossReason, Str};
use crate::record::{Body, Fingerprint, Record, SCHEMA};
use lost::{LostRange, Undeclared};
use queue::{BatchOutcome, Patience, Queue, QueueEntry};

/// An output of records.
pub trait Sink: Send {
    /// Its name in records, metrics and logs.
    fn name(&self) -> String;

    /// The name of its encoding.
    fn format(&self) -> &'static str;

    /// Writes records in order.
    fn deliver(&mut self, records: &[Arc<Record>], patience: Patience<'_>) -> Delivery;

    /// True if the reader has gone. Must not write.
    fn is_closed(&self) -> bool {
        false
    }
}

/// The result of writing a batch.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Records written, from the front of the batch.
    pub delivered: usize,
    /// Of those, records that the receiver rejected; it does not report which.
    pub rejected: u64,
    /// Why the rest was not written.
    pub error: Option<SinkError>,
}

impl Delivery {
    pub fn all(records: &[Arc<Record>]) -> Delivery {
        Delivery { delivered: records.len(), ..Delivery::default() }
    }
}

/// Why records were not written.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The reader has gone: a normal end.
    #[error("the reader of the output has gone")]
    Closed,
    #[error("{name}: {error}")]
    Write { name: String, error: io::Error },
    /// The receiver refused, was unreachable for too long, or the sink is not open.
    #[error("{name}: {message}")]
    Refused { name: String, reason: LossReason, message: String },
}

impl SinkError {
    /// The `reason` of the loss.
    pub fn reason(&self) -> LossReason {
        match self {
            SinkError::Closed => LossReason::Closed,
            SinkError::Write { .. } => LossReason::WriteFailed,
            SinkError::Refused { reason, .. } => *reason,
        }
    }
}

/// Makes records: gives each an id, which is the same in every sink, with cluster and node.
#[derive(Debug)]
pub struct RecordIds {
    pub run: Str,
    pub cluster: Option<Str>,
    pub node: Option<Str>,
    next: AtomicU64,
}

impl RecordIds {
    pub fn new(run: String, cluster: Option<String>, node: Option<String>) -> RecordIds {
        let (cluster, node) = (cluster.map(Into::into), node.map(Into::into));
        RecordIds { run: run.into(), cluster, node, next: AtomicU64::new(1) }
    }

    /// Makes the next record. Each sink sets its own `seq`.
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

/// The most records in a batch.
const BATCH: usize = 64;
/// An idle sink checks at this interval whether its reader has gone, and tries again to declare a loss.
const IDLE: Duration = Duration::from_secs(1);

/// The thread of a sink: writes what the queue has until the queue ends or the reader has gone.
pub fn run(mut sink: Box<dyn Sink>, queue: &Queue, ids: &RecordIds) {
    // However this thread ends, others must not wait for it.
    let _abandon = AbandonOnDrop(queue);
    let mut deliverer = Deliverer { name: sink.name(), seq: 0, undeclared: Undeclared::default(), failing: false };
    while let Some(entries) = queue.take(BATCH, IDLE) {
        let closed = if entries.is_empty() && deliverer.undeclared.is_empty() {
            sink.is_closed()
        } else {
            deliverer.deliver(sink.as_mut(), entries, queue, ids)
        };
        if closed {
            queue.abandon(Some(SinkError::Closed.to_string()));
            return;
        }
    }
    if !deliverer.undeclared.is_empty() {
        deliverer.deliver(sink.as_mut(), Vec::new(), queue, ids);
    }
}

/// Abandons the queue when the sink's thread ends.
struct AbandonOnDrop<'a>(&'a Queue);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon(None);
    }
}

/// Hands batches to a sink and does its accounting.
struct Deliverer {
    name: String,
    /// The number of the last record that was written.
    seq: u64,
    undeclared: Undeclared,
    /// The last write failed, and the log has a line about it.
    failing: bool,
}

/// What a record in a batch counts for.
enum BatchItem {
    Packets(u64),
    Declares(LostRange),
}

impl Deliverer {
    /// Writes declarations of earlier losses, then `entries`. Returns true if the reader has gone.
    fn deliver(&mut self, sink: &mut dyn Sink, entries: Vec<QueueEntry>, queue: &Queue, ids: &RecordIds) -> bool {
        let mut records = Vec::with_capacity(entries.len());
        let mut items = Vec::with_capacity(entries.len());
        // True for records of the pipeline's thread.
        let mut recyclable = Vec::with_capacity(entries.len());
        let declarations = self.undeclared.take().into_iter().map(QueueEntry::Overflowed);
        for entry in declarations.chain(entries) {
            let (mut record, item) = match entry {
                QueueEntry::Record(waiting) => (waiting.record, BatchItem::Packets(waiting.packets)),
                QueueEntry::Overflowed(lost) => {
                    let declaration = lost.declaration(&self.name);
                    (Arc::new(ids.record(Body::Loss(declaration), None, lost.time())), BatchItem::Declares(lost))
                }
            };
            // `make_mut` makes a copy while another sink has the record too.
            recyclable.push(matches!(item, BatchItem::Packets(_)) && Arc::get_mut(&mut record).is_some());
            Arc::make_mut(&mut record).seq = self.seq + records.len() as u64 + 1;
            records.push(record);
            items.push(item);
        }
        let delivery = sink.deliver(&records, Patience(queue));
        let delivered = delivery.delivered.min(records.len());
        self.seq += delivered as u64;
        let mut done = BatchOutcome { records: delivered as u64, ..BatchOutcome::default() };
        let (mut lost_packets, mut lost_records) = (0, 0);
        let reason = delivery.error.as_ref().map_or(LossReason::WriteFailed, SinkError::reason);
        for (at, (record, item)) in records.iter().zip(items).enumerate() {
            match item {
                BatchItem::Packets(packets) if at < delivered => done.written += packets,
                BatchItem::Packets(packets) => {
                    lost_packets += packets;
                    lost_records += 1;
                    done.of.push((record, packets));
                    self.undeclared.add(LostRange::new(reason, record, packets));
                }
                BatchItem::Declares(_) if at < delivered => {}
                // The loss is declared again. Its `seq` was not written, so that no gap arises.
                BatchItem::Declares(lost) => self.undeclared.add(lost),
            }
        }
        if lost_records > 0 {
            done.lost.push((reason, lost_packets, lost_records));
        }
        if let (1.., Some(first), Some(last)) = (delivery.rejected, records.first(), records.last()) {
            let (count, packets) = (delivery.rejected.min(done.records), delivery.rejected.min(done.written));
            done.records -= count;
            done.written -= packets;
            done.lost.push((LossReason::Rejected, packets, count));
            let mut rejected = LostRange::new(LossReason::Rejected, first, packets).estimated();
            rejected.add(LostRange::new(LossReason::Rejected, last, 0));
            self.undeclared.add(rejected);
        }
        let closed = matches!(delivery.error, Some(SinkError::Closed));
        self.log(delivery.error.as_ref().filter(|_| !closed));
        queue.complete(done, delivery.error.map(|error| error.to_string()));
        queue.recycle(
            records
                .into_iter()
                .zip(recyclable)
                .filter_map(|(record, recyclable)| recyclable.then_some(record))
                .collect(),
        );
        closed
    }

    fn log(&mut self, error: Option<&SinkError>) {
        match error {
            Some(error) if !self.failing => {
                tracing::error!(%error, "records can't be written; they are counted as lost until writing works again");
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

    pub(super) fn ids() -> RecordIds {
        RecordIds::new("a".into(), None, None)
    }

    pub(super) fn record(ids: &RecordIds) -> Record {
        ids.record(Body::Loss(loss()), None, Timestamp::UNIX_EPOCH)
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

    /// The first of two sinks copies the record. It frees its copy, and the second sink recycles the record.
    #[test]
    fn a_copy_is_freed_by_its_sink() {
        let queues = [Queue::default(), Queue::default()];
        let record = Arc::new(record(&ids()));
        for queue in &queues {
            queue.push(queue::QueuedRecord::new(record.clone(), 1), Duration::ZERO);
        }
        drop(record);
        for queue in &queues {
            let mut deliverer =
                Deliverer { name: "taker".into(), seq: 0, undeclared: Undeclared::default(), failing: false };
            let entries = queue.take(BATCH, Duration::ZERO).unwrap();
            assert!(!deliverer.deliver(&mut Taker, entries, queue, &ids()));
        }
        assert_eq!(queues.map(|queue| (queue.finished(), queue.counts().written)), [(0, 1), (1, 1)]);
    }
}
