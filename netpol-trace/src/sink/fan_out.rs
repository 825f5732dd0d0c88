//! Makes records of what the pipeline says, and hands each to every sink.
//!
//! The first sink is the ledger: the books' `written`, `held` and `lost` are its. The others' are in `sinks` of every status.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::model::{Cause, SinkState};
use crate::record::{Body, Fingerprint};
use crate::sink::queue::{Counts, Queue, Waiting, Written};
use crate::sink::reopen::{Open, Reopening};
use crate::sink::{self, Numbers, Sink, SinkError};

/// How long a sink may stand still when the agent stops, and after that with the last status: Kubernetes kills a pod after 30
/// seconds. One that retries gives up then.
const LAST: Duration = Duration::from_secs(10);
const LAST_STATUS: Duration = Duration::from_secs(5);
/// How long the pipeline waits for a sink that is the only one and stands still.
const ALONE: Duration = Duration::from_secs(2);

/// All sinks.
#[derive(Debug)]
pub struct Output {
    numbers: Arc<Numbers>,
    outlets: Vec<Outlet>,
    metrics: Arc<Metrics>,
}

/// A sink's near end.
#[derive(Debug)]
struct Outlet {
    name: String,
    format: &'static str,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl Output {
    pub fn new(numbers: Numbers) -> Output {
        Output { numbers: Arc::new(numbers), outlets: Vec::new(), metrics: Arc::default() }
    }

    /// Counts every record, and is told by others of what else there is to tell.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Adds a sink, with a thread of its own. The first one is the ledger.
    pub fn add(&mut self, sink: Box<dyn Sink>) -> io::Result<()> {
        self.start(sink).map(drop)
    }

    fn start(&mut self, sink: Box<dyn Sink>) -> io::Result<Arc<Queue>> {
        let (name, format, queue) = (sink.name(), sink.format(), Arc::new(Queue::default()));
        let thread = std::thread::Builder::new().name("sink".into()).spawn({
            let (queue, numbers) = (queue.clone(), self.numbers.clone());
            move || sink::run(sink, &queue, &numbers)
        })?;
        self.outlets.push(Outlet { name, format, queue: queue.clone(), thread });
        Ok(queue)
    }

    /// Adds a sink behind the first one. One that can't be opened holds up nothing: it is tried again until it can.
    pub fn add_secondary(&mut self, name: String, format: &'static str, open: Open) -> io::Result<()> {
        let sink = Reopening::new(name, format, open, Backoff::default(), self.metrics.clone());
        let error = sink.error();
        let queue = self.start(Box::new(sink))?;
        if let Some(error) = error {
            queue.failing(error.to_string());
        }
        Ok(())
    }

    /// Hands one record of `packets` packets to every sink. Waits for none of several; a sink alone is waited for while it moves,
    /// since there is nobody to hold up, and the queue before the pipeline takes what comes meanwhile.
    ///
    /// `fingerprint`: `None` for a record that no other agent can have.
    ///
    /// # Errors
    /// That the ledger's reader has gone: the others have the record.
    pub fn write(
        &self,
        body: Body,
        fingerprint: Option<Fingerprint>,
        time: Timestamp,
        packets: u64,
    ) -> Result<(), SinkError> {
        self.metrics.count(&body);
        let record = Arc::new(self.numbers.record(body, fingerprint, time));
        let patience = if self.outlets.len() == 1 { ALONE } else { Duration::ZERO };
        for outlet in &self.outlets {
            outlet.queue.push(Waiting::new(record.clone(), packets), patience);
        }
        if self.is_closed() { Err(SinkError::Closed) } else { Ok(()) }
    }

    /// Whether the reader of the ledger has gone.
    pub fn is_closed(&self) -> bool {
        self.outlets.first().is_some_and(|ledger| ledger.queue.is_gone())
    }

    /// The ledger's part of the books.
    pub fn ledger(&self) -> Counts {
        self.outlets.first().map(|ledger| ledger.queue.counts()).unwrap_or_default()
    }

    /// Tells `written` of packets whose lines the ledger wrote.
    pub fn on_written(&self, written: Written) {
        if let Some(ledger) = self.outlets.first() {
            ledger.queue.on_written(written);
        }
    }

    /// Of packets by cause, those that the ledger has not lost.
    pub fn not_lost(&self, mut causes: BTreeMap<Cause, u64>) -> BTreeMap<Cause, u64> {
        for (cause, lost) in self.outlets.first().map(|ledger| ledger.queue.lost_causes()).unwrap_or_default() {
            if let Some(count) = causes.get_mut(&cause) {
                *count = count.saturating_sub(lost);
            }
        }
        causes
    }

    /// Every sink, as a status tells it.
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

    /// Records lost by all sinks together, by reason.
    pub fn losses(&self) -> BTreeMap<&'static str, u64> {
        let mut sum = BTreeMap::new();
        for (reason, count) in self.outlets.iter().flat_map(|outlet| outlet.queue.reasons()) {
            *sum.entry(reason).or_default() += count;
        }
        sum
    }

    /// Waits until every sink has got out what it was given, but not for long: the agent is to stop.
    pub fn drain(&self) {
        self.drain_within(LAST);
    }

    fn drain_within(&self, time: Duration) {
        let by = Instant::now() + time;
        self.outlets.iter().for_each(|outlet| outlet.queue.stop_by(by));
        for outlet in &self.outlets {
            if !outlet.queue.drained(time) {
                tracing::warn!(sink = outlet.name, "records are left that could not be written in time");
            }
        }
    }

    /// The end: what is left goes out, as far as it can. False when a sink ended by a bug.
    pub fn finish(self) -> bool {
        self.drain_within(LAST_STATUS);
        self.outlets.iter().for_each(|outlet| outlet.queue.end());
        let mut sound = true;
        for Outlet { name, queue, thread, .. } in self.outlets {
            // A thread that is stuck in a write ends with the process.
            let stuck = !queue.drained(Duration::ZERO);
            if !stuck && thread.join().is_err() {
                tracing::error!(sink = name, "the sink's thread panicked");
                sound = false;
            }
        }
        sound
    }

    pub fn run(&self) -> &str {
        &self.numbers.run
    }

    /// The cluster's name in records.
    pub fn cluster(&self) -> Option<&str> {
        self.numbers.cluster.as_deref()
    }
}
