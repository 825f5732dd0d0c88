//! LogInput that has an end: read at the speed of memory.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{Error, Read};
use crate::record::lines;
use crate::recorded::input::{self, LogInput};
use crate::recorded::unpack::Unreadable;
use crate::tail::stream::Tail;
use crate::text::escape;

/// Shows all of the files and folders that were named.
pub(super) fn whole(files: &[PathBuf], tail: &mut Tail, out: &mut impl Write) -> Result<Read, Error> {
    let mut inputs = input::inputs(files)?;
    let mut broken = false;
    for input in &mut inputs {
        if let Some(problem) = take(input, tail)? {
            report(&problem);
            broken = true;
        }
    }
    tail.finish(out)?;
    Ok(Read { names: input::names(&inputs), broken })
}

/// One log; why not all of it is records.
fn take(input: &mut LogInput, tail: &mut Tail) -> Result<Option<input::LogError>, Error> {
    let reader = match input.open() {
        Ok(Some(reader)) => reader,
        Ok(None) => return Ok(None),
        // The other logs count.
        Err(problem) => return Ok(Some(problem)),
    };
    tail.begin(&input.name);
    let mut result = Ok(());
    let read = lines::for_each(reader, |line| {
        result = tail.line(line);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result.map_err(Error::Sort)?;
    Ok(match read {
        Err(error) => Some(input.unreadable(Unreadable::from_read(error))),
        Ok(()) => without_record(input, tail),
    })
}

/// What is wrong with a log that has been read, and in which no line was a record.
fn without_record(input: &LogInput, tail: &Tail) -> Option<input::LogError> {
    let read = &tail.input;
    let none = read.filled == read.not_records;
    if none { input.without_record(read.filled, read.first_not_record.as_deref()) } else { None }
}

pub(super) fn report(problem: &input::LogError) {
    eprintln!("netpol-trace tail: {}", escape(&problem.to_string()));
}
