//! Input that has an end: read at the speed of memory.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use super::Error;
use crate::history;
use crate::storage::Folder;
use crate::tail::lines;
use crate::tail::stream::Tail;

/// Shows all of a file, or of an agent's history.
pub(super) fn whole(path: &Path, tail: &mut Tail, out: &mut impl Write) -> Result<(), Error> {
    let name = path.display().to_string();
    if path.is_dir() {
        let failed = |error| Error::Input { name: name.clone(), error };
        let folder = Folder::follow(path).map_err(failed)?;
        for segment in history::segments(&folder).map_err(failed)? {
            // One that the agent has removed in between.
            let Ok(file) = folder.read(&segment.name) else { continue };
            take(file, &path.join(&segment.name).display().to_string(), tail)?;
        }
        return Ok(tail.finish(out)?);
    }
    let file = File::open(path).map_err(|error| Error::Input { name: name.clone(), error })?;
    take(file, &name, tail)?;
    Ok(tail.finish(out)?)
}

fn take(file: File, name: &str, tail: &mut Tail) -> Result<(), Error> {
    let failed = |error| Error::Input { name: name.to_owned(), error };
    let mut result = Ok(());
    let cutter = lines::for_each(file, |line| {
        result = tail.line(line);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    tail.tally.not_records += cutter.map_err(failed)?.too_long;
    result.map_err(failed)
}
