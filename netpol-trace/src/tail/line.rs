//! A record together with its line, so that a line is parsed once on its way through `tail`.

use crate::record::read::{RecordView, read};

self_cell::self_cell!(
    /// A record with the line that it borrows from.
    pub struct ParsedLine {
        owner: Vec<u8>,
        #[covariant]
        dependent: RecordView,
    }

    impl {Debug}
);

impl ParsedLine {
    /// Returns `None` if the line is not a record.
    pub fn parse(line: &[u8]) -> Option<ParsedLine> {
        ParsedLine::try_new(line.to_vec(), |line| read(line).ok_or(())).ok()
    }

    pub fn record(&self) -> &RecordView<'_> {
        self.borrow_dependent()
    }

    pub fn line(&self) -> &[u8] {
        self.borrow_owner()
    }
}
