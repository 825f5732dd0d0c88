//! What a sink did not get out, until it is declared in that sink's own stream.

use jiff::Timestamp;

use crate::model::{Loss, LossReason, LossStage};
use crate::record::{Body, Record};

/// Records that did not make it, one after the other, for one reason.
#[derive(Debug, Clone)]
pub struct Lost {
    reason: LossReason,
    packets: u64,
    first: String,
    last: String,
    time: Timestamp,
    last_time: Timestamp,
    /// It is not known which of the records between `first` and `last` they were, so `packets` may be too many.
    estimate: bool,
}

impl Lost {
    /// `packets`: those that the record stands for. Where it declares some as lost itself, they are to be declared all the same.
    pub fn new(reason: LossReason, record: &Record, packets: u64) -> Lost {
        let (id, time) = (&record.id, record.time);
        let packets = match &record.body {
            Body::Loss(Loss { of: None, estimate: false, count: Some(count), .. }) => packets + count,
            _ => packets,
        };
        Lost { reason, packets, first: id.clone(), last: id.clone(), time, last_time: time, estimate: false }
    }

    pub fn estimated(mut self) -> Lost {
        self.estimate = true;
        self
    }

    /// Takes in what was lost after this.
    pub fn add(&mut self, later: Lost) {
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

/// What is not yet declared: one entry per reason, so it can't grow without bound.
#[derive(Debug, Default)]
pub struct Undeclared(Vec<Lost>);

impl Undeclared {
    pub fn add(&mut self, lost: Lost) {
        match self.0.iter_mut().find(|known| known.reason == lost.reason) {
            Some(known) => known.add(lost),
            None => self.0.push(lost),
        }
    }

    pub fn take(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::tests::{loss, numbers};

    #[test]
    fn a_lost_declaration_is_declared_again() {
        let loss = |of: Option<&str>, estimate| {
            let body = Loss { of: of.map(|of| of.to_owned().into()), count: Some(7), estimate, ..loss() };
            numbers().record(Body::Loss(body), None, Timestamp::UNIX_EPOCH)
        };
        let mut lost = Lost::new(LossReason::QueueFull, &loss(None, false), 0);
        // Neither connections nor estimates are in the books.
        lost.add(Lost::new(LossReason::QueueFull, &loss(Some("connections"), false), 0));
        lost.add(Lost::new(LossReason::QueueFull, &loss(None, true), 0));
        assert_eq!(lost.declaration("stdout").count, Some(7));
    }
}
