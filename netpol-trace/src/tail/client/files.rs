//! Shows the records of files, folders and standard input.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{TailError, live, report};
use crate::record::lines;
use crate::recorded::input::{self, LogError, LogInput, is_stdin};
use crate::recorded::unpack::Unreadable;
use crate::tail::stream::Tail;

/// What was read.
#[derive(Debug)]
pub struct FilesRead {
    /// `drops.jsonl`, `3 files`
    pub names: String,
    /// A log could not be read to its end, or is not a log.
    pub broken: bool,
}

/// Shows all records of the named logs, and with `follow` those that are written later.
pub fn show(files: &[PathBuf], follow: bool, tail: &mut Tail, out: &mut impl Write) -> Result<FilesRead, TailError> {
    if follow || files.iter().any(|path| is_stdin(path)) {
        return live::show_files(tail, out, files, follow);
    }
    let mut inputs = input::inputs(files)?;
    let mut broken = false;
    for input in &mut inputs {
        // A log that cannot be read does not keep the others from being shown.
        if let Some(problem) = read(input, tail)? {
            report(&problem.to_string());
            broken = true;
        }
    }
    tail.finish(out)?;
    Ok(FilesRead { names: input::names(&inputs), broken })
}

/// Reads one log to its end. Returns what is wrong with it.
fn read(input: &mut LogInput, tail: &mut Tail) -> Result<Option<LogError>, TailError> {
    let reader = match input.open() {
        Ok(Some(reader)) => reader,
        Ok(None) => return Ok(None),
        Err(problem) => return Ok(Some(problem)),
    };
    let log = tail.add_log(Some(&input.name));
    let mut result = Ok(());
    let read = lines::for_each(reader, |line| {
        result = tail.line(log, line);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result.map_err(TailError::Sort)?;
    Ok(match read {
        Err(error) => Some(input.unreadable(Unreadable::from_read(error))),
        Ok(()) => tail.problem(log, input),
    })
}
