//! Makes records and hands each to every sink.
//!
//! The first sink is the primary sink: `written`, `held` and `lost` of packet accounting are its counts. Each status has the counts of all
//! sinks in `sinks`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::model::{Cause, LossReason, SinkState};
use crate::record::{Body, Fingerprint};
use crate::sink::queue::{OnWritten, Queue, QueuedRecord, SinkCounts};
use crate::sink::reopen::{Open, ReopeningSink};
use crate::sink::{self, RecordIds, Sink, SinkError};

/// How long a sink may make no progress when the agent stops, and then with the last status. Kubernetes kills a pod after 30 seconds. A
/// sink that retries gives up at the end of this time.
const LAST: Duration = Duration::from_secs(10);
const LAST_STATUS: Duration = Duration::from_secs(5);
/// How long the pipeline waits for the only sink when its queue is full and makes no progress.
const ALONE: Duration = Duration::from_secs(2);

/// All sinks.
#[derive(Debug)]
pub struct FanOut {
    ids: Arc<RecordIds>,
    outlets: Vec<Outlet>,
    metrics: Arc<Metrics>,
}

/// The pipeline's end of a sink.
#[derive(Debug)]
struct Outlet {
    name: String,
    format: &'static str,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl FanOut {
    pub fn new(ids: RecordIds) -> FanOut {
        FanOut { ids: Arc::new(ids), outlets: Vec::new(), metrics: Arc::default() }
    }

    /// The agent's metrics; [`FanOut::write`] counts every record in them.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Adds a sink and starts its thread. The first sink is the primary sink.
    pub fn add(&mut self, sink: Box<dyn Sink>) -> io::Result<()> {
        self.start(sink).map(drop)
    }

    fn start(&mut self, sink: Box<dyn Sink>) -> io::Result<Arc<Queue>> {
        let (name, format, queue) = (sink.name(), sink.format(), Arc::new(Queue::default()));
        let thread = std::thread::Builder::new().name("sink".into()).spawn({
            let (queue, ids) = (queue.clone(), self.ids.clone());
            move || sink::run(sink, &queue, &ids)
        })?;
        self.outlets.push(Outlet { name, format, queue: queue.clone(), thread });
        Ok(queue)
    }

    /// Adds a secondary sink. If it can't be opened, its thread tries again until it can.
    pub fn add_secondary(&mut self, name: String, format: &'static str, open: Open) -> io::Result<()> {
        let sink = ReopeningSink::new(name, format, open, Backoff::default(), self.metrics.clone());
        let error = sink.error();
        let queue = self.start(Box::new(sink))?;
        if let Some(error) = error {
            queue.failing(error.to_string());
        }
        Ok(())
    }

    /// Hands a record that stands for `packets` packets to every sink. With several sinks it waits for none. With one sink it waits while the
    /// sink makes progress: the queue before the pipeline then takes what comes meanwhile.
    ///
    /// `fingerprint` is `None` for a record that no other agent can have.
    ///
    /// # Errors
    /// The reader of the primary sink has gone. The other sinks have the record.
    pub fn write(
        &self,
        body: Body,
        fingerprint: Option<Fingerprint>,
        time: Timestamp,
        packets: u64,
    ) -> Result<(), SinkError> {
        self.metrics.count(&body);
        let record = Arc::new(self.ids.record(body, fingerprint, time));
        let patience = if self.outlets.len() == 1 { ALONE } else { Duration::ZERO };
        for outlet in &self.outlets {
            outlet.queue.push(QueuedRecord::new(record.clone(), packets), patience);
        }
        if self.is_closed() { Err(SinkError::Closed) } else { Ok(()) }
    }

    /// True if the reader of the primary sink has gone.
    pub fn is_closed(&self) -> bool {
        self.outlets.first().is_some_and(|primary| primary.queue.is_gone())
    }

    /// The counts of the primary sink.
    pub fn primary(&self) -> SinkCounts {
        self.outlets.first().map(|primary| primary.queue.counts()).unwrap_or_default()
    }

    /// Calls `written` with the number of packets whenever the primary sink has written records.
    pub fn on_written(&self, written: OnWritten) {
        if let Some(primary) = self.outlets.first() {
            primary.queue.on_written(written);
        }
    }

    /// Subtracts packets that the primary sink lost from `causes`.
    pub fn not_lost(&self, mut causes: BTreeMap<Cause, u64>) -> BTreeMap<Cause, u64> {
        for (cause, lost) in self.outlets.first().map(|primary| primary.queue.lost_causes()).unwrap_or_default() {
            if let Some(count) = causes.get_mut(&cause) {
                *count = count.saturating_sub(lost);
            }
        }
        causes
    }

    /// The state of every sink, for a status record.
    pub fn states(&self) -> Vec<SinkState> {
        let state = |outlet: &Outlet| {
            let counts = outlet.queue.counts();
            SinkState {
                name: outlet.name.clone(),
                format: outlet.format.into(),
                written: counts.written,
                held: counts.held,
                lost: counts.lost,
                records: counts.records,
                records_lost: counts.records_lost,
                queued: counts.queued as u64,
                error: outlet.queue.error(),
            }
        };
        self.outlets.iter().map(state).collect()
    }

    /// Records lost by all sinks, by reason.
    pub fn losses(&self) -> BTreeMap<LossReason, u64> {
        let mut sum = BTreeMap::new();
        for (reason, count) in self.outlets.iter().flat_map(|outlet| outlet.queue.reasons()) {
            *sum.entry(reason).or_default() += count;
        }
        sum
    }

    /// Waits until every sink has written its queue, within limits: the agent stops.
    pub fn drain(&self) {
        self.drain_within(LAST);
    }

    fn drain_within(&self, time: Duration) {
        let by = Instant::now() + time;
        self.outlets.iter().for_each(|outlet| outlet.queue.stop_by(by));
        for outlet in &self.outlets {
            if !outlet.queue.drained(time) {
                tracing::warn!(
                    sink = outlet.name,
                    "the agent stops before this sink has written all its records: the rest is lost"
                );
            }
        }
    }

    /// Writes what is left, as far as possible, and ends all sinks. Returns false if a sink's thread panicked.
    pub fn finish(self) -> bool {
        self.drain_within(LAST_STATUS);
        self.outlets.iter().for_each(|outlet| outlet.queue.end());
        let mut sound = true;
        for Outlet { name, queue, thread, .. } in self.outlets {
            // A thread that hangs in a write ends with the process.
            let stuck = !queue.drained(Duration::ZERO);
            if !stuck && thread.join().is_err() {
                tracing::error!(sink = name, "the sink's thread panicked");
                sound = false;
            }
        }
        sound
    }

    pub fn run(&self) -> &str {
        &self.ids.run
    }

    /// The cluster's name in records.
    pub fn cluster(&self) -> Option<&str> {
        self.ids.cluster.as_deref()
    }
}
