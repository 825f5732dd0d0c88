//! Writes a JSON object per line to stdout.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::queue::Patience;
use super::{Delivery, Sink, SinkError};
use crate::record::format::Format;
use crate::record::{Record, format};

#[derive(Debug)]
pub struct StdoutSink {
    format: Format,
    buffer: Vec<u8>,
}

impl StdoutSink {
    pub fn new(format: Format) -> StdoutSink {
        StdoutSink { format, buffer: Vec::new() }
    }
}

impl Sink for StdoutSink {
    fn name(&self) -> String {
        "stdout".into()
    }

    fn format(&self) -> &'static str {
        self.format.as_str()
    }

    fn deliver(&mut self, records: &[Arc<Record>], _: Patience<'_>) -> Delivery {
        self.buffer.clear();
        let mut write = || -> io::Result<()> {
            for record in records {
                format::line(self.format, record, &mut self.buffer)?;
            }
            let mut out = io::stdout().lock();
            out.write_all(&self.buffer)?;
            out.flush()
        };
        match write() {
            Ok(()) => Delivery::all(records),
            Err(error) => Delivery { error: Some(from_io(self.name(), error)), ..Delivery::default() },
        }
    }

    fn is_closed(&self) -> bool {
        let mut poll = libc::pollfd { fd: io::stdout().as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one valid pollfd, no waiting.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 && poll.revents & (libc::POLLERR | libc::POLLNVAL) != 0 }
    }
}

pub(super) fn from_io(name: String, error: io::Error) -> SinkError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => SinkError::Closed,
        _ => SinkError::Write { name, error },
    }
}
