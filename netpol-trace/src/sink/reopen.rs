//! Opens a secondary sink, again and again with growing pauses if that fails. Counts the records of that time as lost; the sink declares
//! them in its stream once it is open.

use std::sync::Arc;
use std::time::Instant;

use super::queue::Patience;
use super::{Delivery, Sink, SinkError};
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::model::LossReason;
use crate::record::Record;

/// Opens the sink, or returns why it can't.
pub type Open = Box<dyn FnMut() -> anyhow::Result<Box<dyn Sink>> + Send>;

pub struct ReopeningSink {
    name: String,
    format: &'static str,
    open: Open,
    state: ReopenState,
    metrics: Arc<Metrics>,
}

enum ReopenState {
    Open(Box<dyn Sink>),
    /// With the last error and the time of the next attempt.
    Closed {
        error: String,
        retry_at: Instant,
        backoff: Backoff,
    },
}

impl ReopeningSink {
    /// Makes the first attempt.
    pub fn new(
        name: String,
        format: &'static str,
        open: Open,
        backoff: Backoff,
        metrics: Arc<Metrics>,
    ) -> ReopeningSink {
        let state = ReopenState::Closed { error: String::new(), retry_at: Instant::now(), backoff };
        let mut sink = ReopeningSink { name, format, open, state, metrics };
        sink.try_open();
        sink
    }

    /// Why the sink is not open; `None` if it is open.
    pub fn error(&self) -> Option<SinkError> {
        match &self.state {
            ReopenState::Open(_) => None,
            ReopenState::Closed { error, .. } => Some(SinkError::Refused {
                name: self.name.clone(),
                reason: LossReason::NotOpen,
                message: error.clone(),
            }),
        }
    }

    fn try_open(&mut self) {
        let ReopenState::Closed { error, retry_at, backoff } = &mut self.state else { return };
        if Instant::now() < *retry_at {
            return;
        }
        match (self.open)() {
            Ok(sink) => self.state = ReopenState::Open(sink),
            Err(why) => {
                *error = format!("{why:#}");
                *retry_at = Instant::now() + backoff.pause();
                self.metrics.error("sink", "open");
            }
        }
    }
}

impl Sink for ReopeningSink {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn format(&self) -> &'static str {
        self.format
    }

    fn deliver(&mut self, records: &[Arc<Record>], patience: Patience<'_>) -> Delivery {
        self.try_open();
        let error = self.error();
        match &mut self.state {
            ReopenState::Open(sink) => sink.deliver(records, patience),
            ReopenState::Closed { .. } => Delivery { error, ..Delivery::default() },
        }
    }

    fn is_closed(&self) -> bool {
        matches!(&self.state, ReopenState::Open(sink) if sink.is_closed())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::model::LossStage;
    use crate::record::Body;
    use crate::record::format::Format;
    use crate::sink::fan_out::FanOut;
    use crate::sink::file::{FileSink, Rotation};
    use crate::sink::queue::{Queue, QueuedRecord};
    use crate::sink::tests::{ids, loss, record};
    use crate::storage::Readers;

    fn lines(path: &Path) -> anyhow::Result<Box<dyn Sink>> {
        Ok(Box::new(FileSink::open(path, Format::Native, Rotation::default(), Readers::default())?))
    }

    fn read(path: &Path) -> Vec<Record> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The folder of a file appears later: the file begins with the declaration of what it missed, and its `seq` has no gap.
    #[test]
    fn a_sink_that_opens_late_declares_what_it_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later/log");
        let metrics = Arc::new(Metrics::default());
        let open: Open = Box::new({
            let path = path.clone();
            move || lines(&path)
        });
        let at_once = Backoff::new(Duration::ZERO, Duration::ZERO);
        let sink = ReopeningSink::new("log".into(), "native", open, at_once, metrics.clone());
        let why = sink.error().unwrap().to_string();
        assert!(why.contains("later: No such file or directory"), "{why}");
        let queue = Arc::new(Queue::default());
        let thread = std::thread::spawn({
            let queue = queue.clone();
            move || crate::sink::run(Box::new(sink), &queue, &ids())
        });
        let ids = ids();
        for packets in [3, 4] {
            queue.push(QueuedRecord::new(Arc::new(record(&ids)), packets), Duration::ZERO);
            assert!(queue.drained(Duration::from_secs(60)));
        }
        let counts = queue.counts();
        assert_eq!((counts.written, counts.held, counts.lost, counts.records_lost), (0, 0, 7, 2));
        assert!(queue.error().unwrap().contains("later"), "{:?}", queue.error());
        assert_eq!(queue.reasons().get(&LossReason::NotOpen), Some(&2));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        queue.push(QueuedRecord::new(Arc::new(record(&ids)), 5), Duration::ZERO);
        assert!(queue.drained(Duration::from_secs(60)));
        assert_eq!((queue.counts().written, queue.counts().lost, queue.error()), (5, 7, None));
        queue.end();
        thread.join().unwrap();
        let records = read(&path);
        assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2]);
        let Body::Loss(declared) = &records[0].body else { panic!("{records:?}") };
        assert_eq!((declared.stage, &*declared.reason, declared.count), (LossStage::Sink, "not_open", Some(7)));
        assert!(
            metrics.page().contains("netpol_trace_errors_total{stage=\"sink\",kind=\"open\"} "),
            "attempts are counted"
        );
    }

    /// Deliveries cause no attempts before the pause is over.
    #[test]
    fn a_sink_is_not_opened_before_its_time() {
        let attempts = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let open: Open = Box::new({
            let attempts = attempts.clone();
            move || {
                attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                anyhow::bail!("not yet")
            }
        });
        let hour = Duration::from_secs(3600);
        let mut sink = ReopeningSink::new("log".into(), "native", open, Backoff::new(hour, hour), Arc::default());
        for _ in 0..100 {
            let delivery = sink.deliver(&[Arc::new(record(&ids()))], Patience(&Queue::default()));
            assert_eq!(
                (delivery.delivered, delivery.error.map(|error| error.reason())),
                (0, Some(LossReason::NotOpen))
            );
        }
        assert_eq!(attempts.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    /// The other sinks get every record, and the state of this one has its error from the start.
    #[test]
    fn the_primary_sink_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (primary, missing) = (dir.path().join("log"), dir.path().join("missing/log"));
        let mut output = FanOut::new(ids());
        output.add(lines(&primary).unwrap()).unwrap();
        output.add_secondary("second".into(), "native", Box::new(move || lines(&missing))).unwrap();
        assert!(output.states()[1].error.as_ref().is_some_and(|error| error.contains("missing")));
        output.write(Body::Loss(loss()), None, jiff::Timestamp::UNIX_EPOCH, 2).unwrap();
        output.drain();
        let states = output.states();
        assert_eq!((states[0].written, states[0].lost, states[0].error.as_ref()), (2, 0, None));
        assert_eq!((states[1].written, states[1].lost, states[1].records_lost), (0, 2, 1));
        assert!(output.finish());
        assert_eq!(read(&primary).len(), 1);
    }
}
