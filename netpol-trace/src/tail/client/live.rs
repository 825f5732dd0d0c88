//! Shows input that may go on: sorts the records that are there, then shows new ones as they come.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::files::FilesRead;
use super::{TailError, report};
use crate::history::Follower;
use crate::record::lines::{LineSplitter, Lines};
use crate::recorded::input::{self, LogError, LogInput, LogLocation};
use crate::recorded::unpack::{LogReader, Unreadable};
use crate::storage::Folder;
use crate::tail::line::ParsedLine;
use crate::tail::stream::{LogId, Tail};
use crate::text::{counted, escape};

/// After a pause of this length in the input, the sorted records are shown: all old ones have come.
const QUIET: Duration = Duration::from_millis(250);
/// A file is read again this often. Polling works on every file system, and finds a file that was replaced.
const POLL: Duration = Duration::from_millis(100);
/// Batches between the readers and [`show`].
const BATCHES: usize = 16;
const READ: usize = 256 * 1024;

/// What a reader sends to [`show`].
pub(super) enum Batch {
    /// Whole lines.
    Lines(LogId, Lines),
    /// Records, and lines that are not records.
    Records(LogId, Vec<Result<ParsedLine, Vec<u8>>>),
    /// The log was read to its end.
    End(LogId, LogInput),
    /// The log cannot be read, or not further.
    Problem(String),
}

/// A log that a thread of its own reads.
enum LiveSource {
    /// Has an end: standard input, a pipe, an archive. Standard input is opened by the thread, since opening waits for the first bytes.
    Once(LogInput, Option<LogReader>),
    File(PathBuf, File),
    History(PathBuf),
}

/// Shows logs until they end, until stdout is closed, or until Ctrl-C.
pub(super) fn show_files(
    tail: &mut Tail,
    out: &mut impl Write,
    files: &[PathBuf],
    follow: bool,
) -> Result<FilesRead, TailError> {
    let (mut sources, mut names, mut not_opened) = (Vec::new(), Vec::new(), false);
    for path in files {
        if follow && path.is_dir() {
            names.push(path.display().to_string());
            sources.push((tail.add_log(None), LiveSource::History(path.clone())));
            continue;
        }
        for input in input::inputs(std::slice::from_ref(path))? {
            names.push(input.name.clone());
            let log = tail.add_log(Some(&input.name));
            match open(input, follow) {
                Ok(source) => sources.extend(source.map(|source| (log, source))),
                // A log that cannot be read does not keep the others from being shown.
                Err(problem) => {
                    report(&problem.to_string());
                    not_opened = true;
                }
            }
        }
    }
    let name = match &*names {
        [only] => only.clone(),
        several => counted(several.len() as u64, "file"),
    };
    let (to_tail, batches) = mpsc::channel(BATCHES);
    for (log, source) in sources {
        let to_tail = to_tail.clone();
        std::thread::spawn(move || match source {
            LiveSource::Once(input, reader) => read_to_end(log, input, reader, &to_tail),
            LiveSource::File(path, file) => follow_file(log, &path, file, &to_tail),
            LiveSource::History(folder) => follow_history(log, &folder, &to_tail),
        });
    }
    drop(to_tail);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let waiting = format!("waiting for {} from {name}; stop with Ctrl-C", tail.selection().describe(None));
    let broken = runtime.block_on(show(tail, out, &waiting, batches))?;
    Ok(FilesRead { names: name, broken: broken || not_opened })
}

/// Opens a log. Only a plain file is followed: an archive does not grow, and a pipe can be read only once.
fn open(mut input: LogInput, follow: bool) -> Result<Option<LiveSource>, LogError> {
    if input.location == LogLocation::Stdin {
        return Ok(Some(LiveSource::Once(input, None)));
    }
    let Some(reader) = input.open()? else { return Ok(None) };
    match &input.location {
        LogLocation::File(path) if follow && path.is_file() => {
            if reader.is_compressed() {
                eprintln!("note: {} is compressed, so it is read and not followed", escape(&input.name));
                return Ok(Some(LiveSource::Once(input, Some(reader))));
            }
            let file = File::open(path).map_err(|error| input.unreadable(error.into()))?;
            Ok(Some(LiveSource::File(path.clone(), file)))
        }
        _ => Ok(Some(LiveSource::Once(input, Some(reader)))),
    }
}

/// Shows batches as they come. Returns true if a log could not be read to its end, or is not a log.
pub(super) async fn show(
    tail: &mut Tail,
    out: &mut impl Write,
    waiting: &str,
    mut batches: mpsc::Receiver<Batch>,
) -> Result<bool, TailError> {
    let mut broken = false;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut reported = false;
    // When the oldest of the records came that are not shown yet.
    let mut since: Option<Instant> = None;
    loop {
        // Of a stream that has reached the present, a record waits only for others of its time, not for a pause.
        let from = since.filter(|_| tail.is_live(Timestamp::now())).unwrap_or_else(Instant::now);
        tokio::select! {
            batch = batches.recv() => {
                let problem = match batch {
                    Some(Batch::Problem(problem)) => Some(problem),
                    Some(Batch::End(log, input)) => tail.problem(log, &input).map(|problem| problem.to_string()),
                    Some(Batch::Lines(log, lines)) => {
                        lines.iter().try_for_each(|line| tail.line(log, line)).map_err(TailError::Sort)?;
                        since.get_or_insert_with(Instant::now);
                        None
                    }
                    Some(Batch::Records(log, lines)) => {
                        for line in lines {
                            match line {
                                Ok(record) => tail.record(log, record).map_err(TailError::Sort)?,
                                Err(line) => tail.not_a_record(log, &line),
                            }
                        }
                        since.get_or_insert_with(Instant::now);
                        None
                    }
                    None => break,
                };
                if let Some(problem) = problem {
                    report(&problem);
                    broken = true;
                }
            }
            () = tokio::time::sleep_until((from + QUIET).into()) => {
                tail.release(out)?;
                since = None;
                if !std::mem::replace(&mut reported, true) {
                    report(waiting);
                }
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    tail.finish(out)?;
    Ok(broken)
}

/// Reads a log that has an end.
fn read_to_end(log: LogId, mut input: LogInput, reader: Option<LogReader>, to_tail: &mpsc::Sender<Batch>) {
    let reader = match reader.map_or_else(|| input.open(), |reader| Ok(Some(reader))) {
        Ok(Some(reader)) => reader,
        Ok(None) => return,
        Err(problem) => return drop(to_tail.blocking_send(Batch::Problem(problem.to_string()))),
    };
    let mut splitter = LineSplitter::default();
    let read = send_lines(log, reader, &mut splitter, to_tail);
    // The last line may have no newline.
    let mut last = Lines::default();
    splitter.finish(|line| last.push(line));
    if !last.is_empty() {
        let _ = to_tail.blocking_send(Batch::Lines(log, last));
    }
    let _ = to_tail.blocking_send(match read {
        Ok(_) => Batch::End(log, input),
        Err(error) => Batch::Problem(input.unreadable(Unreadable::from_read(error)).to_string()),
    });
}

/// Sends the lines of `input` until its end. Returns false if nobody receives them any more.
fn send_lines(
    log: LogId,
    mut input: impl io::Read,
    splitter: &mut LineSplitter,
    to_tail: &mpsc::Sender<Batch>,
) -> io::Result<bool> {
    let mut bytes = vec![0; READ];
    loop {
        let read = match input.read(&mut bytes) {
            Ok(0) => return Ok(true),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut lines = Lines::default();
        splitter.split(bytes.get(..read).unwrap_or_default(), |line| lines.push(line));
        if !lines.is_empty() && to_tail.blocking_send(Batch::Lines(log, lines)).is_err() {
            return Ok(false);
        }
    }
}

/// Sends the lines of a file and those that are appended, also after the file is replaced (rotated) or truncated.
fn follow_file(log: LogId, path: &Path, mut file: File, to_tail: &mpsc::Sender<Batch>) {
    let mut splitter = LineSplitter::default();
    let mut failed = false;
    // A file that cannot be read may be replaced by one that can, so only the first error is reported.
    let mut read_on = |file: &mut File, splitter: &mut LineSplitter| {
        send_lines(log, file, splitter, to_tail).unwrap_or_else(|error| {
            let reported = std::mem::replace(&mut failed, true);
            let problem = || Batch::Problem(format!("{}: {error}", path.display()));
            reported || to_tail.blocking_send(problem()).is_ok()
        })
    };
    while read_on(&mut file, &mut splitter) && !to_tail.is_closed() {
        std::thread::sleep(POLL);
        if let Some(next) = replaced(path, &mut file) {
            // Lines written between the last read and the replacement are in the old file.
            if !read_on(&mut file, &mut splitter) {
                return;
            }
            splitter = LineSplitter::default();
            file = next;
        }
    }
}

/// Sends the lines of an agent's history, and those that are added.
fn follow_history(log: LogId, folder: &Path, to_tail: &mpsc::Sender<Batch>) {
    let problem = |error| Batch::Problem(format!("{}: {error}", folder.display()));
    let mut follower = match Folder::follow(folder) {
        Ok(folder) => Follower::new(folder, None),
        Err(error) => return drop(to_tail.blocking_send(problem(error))),
    };
    while !to_tail.is_closed() {
        let mut lines = Lines::default();
        match follower.read(|line| lines.push(line)) {
            Ok(false) => std::thread::sleep(POLL),
            Ok(true) => drop(to_tail.blocking_send(Batch::Lines(log, lines))),
            Err(error) => {
                let _ = to_tail.blocking_send(problem(error));
                return;
            }
        }
    }
}

/// Opens the file that has replaced the open one under its name.
fn replaced(path: &Path, file: &mut File) -> Option<File> {
    let open = file.metadata().ok()?;
    let now = std::fs::metadata(path).ok()?;
    let at = io::Seek::stream_position(file).ok()?;
    if (open.dev(), open.ino()) != (now.dev(), now.ino()) || now.len() < at { File::open(path).ok() } else { None }
}
