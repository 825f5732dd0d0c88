//! Numbers records and hands them to the sink; a record that can't be written becomes a declared loss.

use jiff::Timestamp;

use crate::books::Books;
use crate::record::{Body, Loss, LossStage, Record, SCHEMA, encode};
use crate::sink::{Lines, SinkError};

/// One sink with its numbering.
#[derive(Debug)]
pub struct Output {
    lines: Lines,
    run: String,
    cluster: Option<String>,
    node: Option<String>,
    /// Records made in this run.
    number: u64,
    /// Lines handed to the sink.
    seq: u64,
    /// Packets and records gathered since the last successful flush.
    gathered: Gathered,
    /// What could not be written and is not yet declared.
    undeclared: Option<Lost>,
    /// The loss record of `undeclared` is among the gathered lines.
    declaring: bool,
}

#[derive(Debug, Default)]
struct Gathered {
    packets: u64,
    first: u64,
    last: u64,
    time: Option<Timestamp>,
}

#[derive(Debug)]
struct Lost {
    packets: u64,
    first: u64,
    last: u64,
    time: Timestamp,
    last_time: Timestamp,
}

impl Output {
    pub fn new(lines: Lines, run: String, cluster: Option<String>, node: Option<String>) -> Output {
        Output {
            lines,
            run,
            cluster,
            node,
            number: 0,
            seq: 0,
            gathered: Gathered::default(),
            undeclared: None,
            declaring: false,
        }
    }

    /// Appends one record of `packets` packets. It is on its way only after [`Output::flush`].
    pub fn write(&mut self, body: Body, time: Timestamp, packets: u64, books: &mut Books) -> Result<(), SinkError> {
        self.declare(books);
        self.append(body, time, packets, books)
    }

    fn append(&mut self, body: Body, time: Timestamp, packets: u64, books: &mut Books) -> Result<(), SinkError> {
        self.number += 1;
        self.seq += 1;
        let record = Record {
            schema: SCHEMA.into(),
            body,
            id: format!("{}/{}", self.run, self.number),
            run: self.run.clone(),
            seq: self.seq,
            time,
            cluster: self.cluster.clone(),
            node: self.node.clone(),
        };
        if let Err(error) = encode::line(&record, self.lines.buffer()) {
            // Our own types always serialize; were one not to, its packets would still be counted.
            tracing::error!(%error, "a record could not be encoded");
            books.lost_sink += packets;
            return Ok(());
        }
        if self.gathered.last == 0 {
            self.gathered.first = self.number;
            self.gathered.time = Some(time);
        }
        self.gathered.last = self.number;
        self.gathered.packets += packets;
        if self.lines.appended() { self.flush(books) } else { Ok(()) }
    }

    /// Writes what has gathered. A write that fails is counted, and declared once writing works again.
    ///
    /// # Errors
    /// Only that the reader has gone: there is nobody left to write for.
    pub fn flush(&mut self, books: &mut Books) -> Result<(), SinkError> {
        let gathered = std::mem::take(&mut self.gathered);
        match self.lines.flush() {
            Ok(()) => {
                books.written += gathered.packets;
                if std::mem::take(&mut self.declaring) {
                    self.undeclared = None;
                }
                Ok(())
            }
            Err(SinkError::Closed) => {
                books.lost_sink += gathered.packets;
                Err(SinkError::Closed)
            }
            Err(error) => {
                books.lost_sink += gathered.packets;
                self.declaring = false;
                if self.undeclared.is_none() {
                    tracing::error!(%error, "records can't be written; they are counted as lost until it works again");
                }
                let now = Timestamp::now();
                let lost = self.undeclared.get_or_insert_with(|| Lost {
                    packets: 0,
                    first: gathered.first,
                    last: 0,
                    time: gathered.time.unwrap_or(now),
                    last_time: now,
                });
                lost.packets += gathered.packets;
                lost.last = gathered.last;
                lost.last_time = now;
                // Their numbers were never seen: `seq` stays gapless.
                self.seq -= gathered.last.saturating_sub(gathered.first.saturating_sub(1)).min(self.seq);
                Ok(())
            }
        }
    }

    /// Puts a loss record in front of the next record, until one got out.
    fn declare(&mut self, books: &mut Books) {
        let Some(lost) = self.undeclared.as_ref().filter(|_| !self.declaring) else { return };
        let time = lost.time;
        let loss = Loss {
            stage: LossStage::Sink,
            reason: "write_failed".into(),
            of: None,
            count: Some(lost.packets),
            estimate: false,
            last_time: Some(lost.last_time),
            sink: Some(self.lines.name()),
            first_id: Some(format!("{}/{}", self.run, lost.first)),
            last_id: Some(format!("{}/{}", self.run, lost.last)),
        };
        self.declaring = true;
        // Can't report a closed reader: nothing is flushed for one record.
        let _ = self.append(Body::Loss(loss), time, 0, books);
    }

    /// Whether the reader of the output has gone.
    pub fn is_closed(&self) -> bool {
        self.lines.is_closed()
    }

    pub fn run(&self) -> &str {
        &self.run
    }
}
