//! Writes records to the history, the ring on disk.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::history::HistoryRing;
use crate::record::format::Format;
use crate::record::{Record, format};
use crate::sink::queue::Patience;
use crate::sink::{Delivery, Sink, SinkError};
use crate::storage::Readers;

/// The sink's name in records.
pub const NAME: &str = "history";
pub const FORMAT: Format = Format::Native;

#[derive(Debug)]
pub struct HistorySink {
    ring: HistoryRing,
    buffer: Vec<u8>,
}

impl HistorySink {
    pub fn open(folder: &Path, readers: Readers, run: &str, size: u64) -> io::Result<HistorySink> {
        Ok(HistorySink { ring: HistoryRing::open(folder, readers, run, size)?, buffer: Vec::new() })
    }
}

impl Sink for HistorySink {
    fn name(&self) -> String {
        NAME.into()
    }

    fn format(&self) -> &'static str {
        FORMAT.as_str()
    }

    fn deliver(&mut self, records: &[Arc<Record>], _: Patience<'_>) -> Delivery {
        self.buffer.clear();
        let mut write = || {
            for record in records {
                format::line(FORMAT, record, &mut self.buffer)?;
            }
            self.ring.append(&self.buffer)
        };
        match write() {
            Ok(()) => Delivery::all(records),
            Err(error) => {
                let name = format!("--history-dir {}", self.ring.folder().display());
                Delivery { error: Some(SinkError::Write { name, error }), ..Delivery::default() }
            }
        }
    }
}
