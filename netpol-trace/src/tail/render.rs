//! Renders records: a line of text each, JSON lines, or the summary of a period.

pub mod paint;
pub mod summary;
pub mod text;

use summary::DropSummary;
use text::{Printer, Style};

/// What `tail` prints.
#[derive(Debug)]
pub enum Rendering {
    Text(Printer),
    /// The lines as they are, except for characters that a terminal would act on.
    Json,
    Summary(Box<DropSummary>, Style),
}
