//! Records that a sink lost, until the sink has declared them in its own stream.

use jiff::Timestamp;

use crate::model::{Loss, LossReason, LossStage};
use crate::record::{Body, Record};

/// Consecutive records that a sink lost for one reason.
#[derive(Debug, Clone)]
pub struct LostRange {
    reason: LossReason,
    packets: u64,
    first: String,
    last: String,
    time: Timestamp,
    last_time: Timestamp,
    /// The lost records are unknown ones between `first` and `last`, so that `packets` may be too many.
    estimate: bool,
}

impl LostRange {
    /// `packets` is the number of packets that the record stands for. A lost declaration counts the packets that it declared.
    pub fn new(reason: LossReason, record: &Record, packets: u64) -> LostRange {
        let (id, time) = (&record.id, record.time);
        let packets = match &record.body {
            Body::Loss(Loss { of: None, estimate: false, count: Some(count), .. }) => packets + count,
            _ => packets,
        };
        LostRange { reason, packets, first: id.clone(), last: id.clone(), time, last_time: time, estimate: false }
    }

    pub fn estimated(mut self) -> LostRange {
        self.estimate = true;
        self
    }

    /// Adds a later loss.
    pub fn add(&mut self, later: LostRange) {
        self.packets += later.packets;
        self.last = later.last;
        self.time = self.time.min(later.time);
        self.last_time = self.last_time.max(later.last_time);
        self.estimate |= later.estimate;
    }

    pub fn time(&self) -> Timestamp {
        self.time
    }

    pub fn declaration(&self, sink: &str) -> Loss {
        Loss {
            stage: LossStage::Sink,
            reason: self.reason.into(),
            of: None,
            count: Some(self.packets),
            estimate: self.estimate,
            last_time: Some(self.last_time),
            sink: Some(sink.to_owned()),
            first_id: Some(self.first.clone()),
            last_id: Some(self.last.clone()),
        }
    }
}

/// Losses that are not yet declared: one entry per reason, and so bounded.
#[derive(Debug, Default)]
pub struct Undeclared(Vec<LostRange>);

impl Undeclared {
    pub fn add(&mut self, lost: LostRange) {
        match self.0.iter_mut().find(|known| known.reason == lost.reason) {
            Some(known) => known.add(lost),
            None => self.0.push(lost),
        }
    }

    pub fn take(&mut self) -> Vec<LostRange> {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::tests::{ids, loss};

    #[test]
    fn a_lost_declaration_is_declared_again() {
        let loss = |of: Option<&str>, estimate| {
            let body = Loss { of: of.map(|of| of.to_owned().into()), count: Some(7), estimate, ..loss() };
            ids().record(Body::Loss(body), None, Timestamp::UNIX_EPOCH)
        };
        let mut lost = LostRange::new(LossReason::QueueFull, &loss(None, false), 0);
        // Packet accounting has neither connections nor estimates.
        lost.add(LostRange::new(LossReason::QueueFull, &loss(Some("connections"), false), 0));
        lost.add(LostRange::new(LossReason::QueueFull, &loss(None, true), 0));
        assert_eq!(lost.declaration("stdout").count, Some(7));
    }
}
