//! LogInput that may go on: what is there is put in order, what comes later is shown as it comes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::input::report;
use super::{Error, Read};
use crate::history::Follower;
use crate::record::lines::LineSplitter;
use crate::recorded::Lines;
use crate::recorded::input::{self, LogInput};
use crate::recorded::unpack::{LogReader, Unreadable};
use crate::storage::Folder;
use crate::tail::stream::Tail;
use crate::text::{counted, escape};

/// LogInput that pauses for so long is shown: what is old has come.
const QUIET: Duration = Duration::from_millis(250);
/// A file is looked at again this often. Polled: it works on every file system, and finds a file that was replaced.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Batches on their way from a reader.
const BATCHES: usize = 16;
const READ: usize = 256 * 1024;

/// What a reader sends: whole lines, or why it can't go on.
pub(super) type Batch = Result<Vec<u8>, String>;

/// Where lines come from.
enum Source {
    /// Has an end: standard input, a pipe, an archive. Standard input is opened where its first bytes may be waited for.
    Dedup(LogInput, Option<LogReader>),
    File(PathBuf, File),
    History(PathBuf),
}

/// Shows logs until they end, their reader goes away, or Ctrl-C.
pub(super) fn run(tail: &mut Tail, out: &mut impl Write, files: &[PathBuf], follow: bool) -> Result<Read, Error> {
    let (mut sources, mut names, mut not_opened) = (Vec::new(), Vec::new(), false);
    for path in files {
        if follow && path.is_dir() {
            names.push(path.display().to_string());
            sources.push(Source::History(path.clone()));
            continue;
        }
        for input in input::inputs(std::slice::from_ref(path))? {
            names.push(input.name.clone());
            match source(input, follow) {
                Ok(source) => sources.extend(source),
                // The other logs count.
                Err(problem) => {
                    report(&problem);
                    not_opened = true;
                }
            }
        }
    }
    let name = match &*names {
        [only] => only.clone(),
        several => counted(several.len() as u64, "file"),
    };
    if let [only] = &*names {
        tail.begin(only);
    }
    let (to_tail, batches) = mpsc::channel(BATCHES);
    for source in sources {
        let to_tail = to_tail.clone();
        std::thread::spawn(move || match source {
            Source::Dedup(input, reader) => once(input, reader, &to_tail),
            Source::File(path, file) => self::follow(&path, file, &to_tail),
            Source::History(folder) => follow_history(&folder, &to_tail),
        });
    }
    drop(to_tail);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let waits_for = format!("waiting for {}, from {name}; Ctrl-C ends", tail.wanted().describe(None));
    let broken = runtime.block_on(show(tail, out, &waits_for, batches))?;
    Ok(Read { names: name, broken: broken || not_opened })
}

/// An archive does not grow: it is read once, and so is what can be read only once.
fn source(mut input: LogInput, follow: bool) -> Result<Option<Source>, input::LogError> {
    if input.source == input::LogLocation::Stdin {
        return Ok(Some(Source::Dedup(input, None)));
    }
    let Some(reader) = input.open()? else { return Ok(None) };
    match &input.source {
        input::LogLocation::File(path) if follow && path.is_file() => {
            if reader.is_compressed() {
                eprintln!("note: {} is compressed, so it is read and not followed", escape(&input.name));
                return Ok(Some(Source::Dedup(input, Some(reader))));
            }
            let file = File::open(path).map_err(|error| input.unreadable(error.into()))?;
            Ok(Some(Source::File(path.clone(), file)))
        }
        _ => Ok(Some(Source::Dedup(input, Some(reader)))),
    }
}

/// Shows batches as they come; whether a source could not be read to its end, or is not a log.
pub(super) async fn show(
    tail: &mut Tail,
    out: &mut impl Write,
    waits_for: &str,
    mut batches: mpsc::Receiver<Batch>,
) -> Result<bool, Error> {
    let mut broken = false;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut told = false;
    // When the first of the lines came that have gathered.
    let mut since: Option<Instant> = None;
    loop {
        // Of a stream that has reached the present, a line waits no longer than for others of its time.
        let from = since.filter(|_| tail.is_live(Timestamp::now())).unwrap_or_else(Instant::now);
        tokio::select! {
            batch = batches.recv() => match batch {
                Some(Ok(lines)) => {
                    let (mut splitter, mut result) = (LineSplitter::default(), Ok(()));
                    let mut take = |line: &[u8]| if result.is_ok() { result = tail.line(line) };
                    splitter.cut(&lines, &mut take);
                    splitter.finish(&mut take);
                    result?;
                    since.get_or_insert_with(Instant::now);
                }
                Some(Err(problem)) => {
                    eprintln!("netpol-trace tail: {}", escape(&problem));
                    broken = true;
                }
                None => break,
            },
            () = tokio::time::sleep_until((from + QUIET).into()) => {
                tail.release(out)?;
                since = None;
                if !std::mem::replace(&mut told, true) {
                    eprintln!("netpol-trace tail: {waits_for}");
                }
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    tail.finish(out)?;
    Ok(broken)
}

/// Sends all of what has an end.
fn once(mut input: LogInput, reader: Option<LogReader>, to_tail: &mpsc::Sender<Batch>) {
    let reader = match reader.map_or_else(|| input.open(), |reader| Ok(Some(reader))) {
        Ok(Some(reader)) => reader,
        Ok(None) => return,
        Err(problem) => return drop(to_tail.blocking_send(Err(problem.to_string()))),
    };
    let mut splitter = LineSplitter::default();
    let mut lines = Lines::default();
    let read = pump(reader, &mut splitter, to_tail, |line| lines.until_record(line));
    // A last line without its end.
    let mut last = Vec::new();
    splitter.finish(|line| {
        lines.until_record(line);
        last.extend_from_slice(line);
    });
    if !last.is_empty() {
        let _ = to_tail.blocking_send(Ok(last));
    }
    let failed = read.err().map(|error| input.unreadable(Unreadable::from_read(error)));
    if let Some(problem) = failed.or_else(|| lines.problem(&input)) {
        let _ = to_tail.blocking_send(Err(problem.to_string()));
    }
}

/// Sends what `input` has until its end; false when nobody listens any more.
fn pump(
    mut input: impl io::Read,
    splitter: &mut LineSplitter,
    to_tail: &mpsc::Sender<Batch>,
    mut each: impl FnMut(&[u8]),
) -> io::Result<bool> {
    let mut bytes = vec![0; READ];
    loop {
        let read = match input.read(&mut bytes) {
            Ok(0) => return Ok(true),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut lines = Vec::with_capacity(read);
        splitter.cut(bytes.get(..read).unwrap_or_default(), |line| {
            each(line);
            lines.extend_from_slice(line);
            lines.push(b'\n');
        });
        if !lines.is_empty() && to_tail.blocking_send(Ok(lines)).is_err() {
            return Ok(false);
        }
    }
}

/// Sends what a file has and gets, also when it is replaced (rotated) or emptied.
fn follow(path: &Path, mut file: File, to_tail: &mpsc::Sender<Batch>) {
    let mut splitter = LineSplitter::default();
    let mut failed = false;
    // A file that can't be read now may be replaced by one that can.
    let mut read_on = |file: &mut File, splitter: &mut LineSplitter| {
        pump(file, splitter, to_tail, |_| {}).unwrap_or_else(|error| {
            let again = std::mem::replace(&mut failed, true);
            again || to_tail.blocking_send(Err(format!("{}: {error}", path.display()))).is_ok()
        })
    };
    while read_on(&mut file, &mut splitter) && !to_tail.is_closed() {
        std::thread::sleep(LOOK_AGAIN);
        if let Some(next) = replaced(path, &mut file) {
            // What came between the last look and the replacement is still in the old file.
            if !read_on(&mut file, &mut splitter) {
                return;
            }
            splitter = LineSplitter::default();
            file = next;
        }
    }
}

/// Sends what an agent's history has and gets.
fn follow_history(folder: &Path, to_tail: &mpsc::Sender<Batch>) {
    let failed = |error| Err(format!("{}: {error}", folder.display()));
    let mut follower = match Folder::follow(folder) {
        Ok(folder) => Follower::new(folder, None),
        Err(error) => return drop(to_tail.blocking_send(failed(error))),
    };
    while !to_tail.is_closed() {
        let mut batch = Vec::new();
        match follower.read(|lines| batch.extend_from_slice(lines)) {
            Ok(false) => std::thread::sleep(LOOK_AGAIN),
            Ok(true) => drop(to_tail.blocking_send(Ok(batch))),
            Err(error) => {
                let _ = to_tail.blocking_send(failed(error));
                return;
            }
        }
    }
}

/// The file that has taken the place of the open one.
fn replaced(path: &Path, file: &mut File) -> Option<File> {
    let open = file.metadata().ok()?;
    let now = std::fs::metadata(path).ok()?;
    let at = io::Seek::stream_position(file).ok()?;
    if (open.dev(), open.ino()) != (now.dev(), now.ino()) || now.len() < at { File::open(path).ok() } else { None }
}
