//! Input that may go on: what is there is put in order, what comes later is shown as it comes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Error;
use crate::history::Follower;
use crate::storage::Folder;
use crate::tail::lines::Cutter;
use crate::tail::stream::Tail;

/// Input that pauses for so long is shown: what is old has come.
const QUIET: Duration = Duration::from_millis(250);
/// A file is looked at again this often. Polled: it works on every file system, and finds a file that was replaced.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Batches on their way from a reader.
const BATCHES: usize = 16;
const READ: usize = 256 * 1024;

pub(super) enum Source {
    Stdin,
    Path(PathBuf),
}

/// What a reader sends: whole lines, or why it can't go on.
pub(super) type Batch = Result<Vec<u8>, String>;

/// Shows a source until it ends, its reader goes away, or Ctrl-C.
pub(super) fn run(tail: &mut Tail, out: &mut impl Write, waits_for: &str, source: Source) -> Result<(), Error> {
    let (name, (to_tail, batches)) = match &source {
        Source::Stdin => ("standard input".to_owned(), mpsc::channel(BATCHES)),
        Source::Path(path) => (path.display().to_string(), mpsc::channel(BATCHES)),
    };
    let opened = match &source {
        Source::Path(path) if !path.is_dir() => {
            Some(File::open(path).map_err(|error| Error::Input { name: name.clone(), error })?)
        }
        _ => None,
    };
    std::thread::spawn(move || match (source, opened) {
        (Source::Path(path), Some(file)) => follow(&path, file, &to_tail),
        (Source::Path(folder), None) => follow_history(&folder, &to_tail),
        _ => {
            pump(io::stdin().lock(), &mut Cutter::default(), &to_tail);
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let waits_for = format!("waiting for {waits_for}, from {name}; Ctrl-C ends");
    runtime.block_on(show(tail, out, &waits_for, batches))
}

/// Shows batches as they come.
pub(super) async fn show(
    tail: &mut Tail,
    out: &mut impl Write,
    waits_for: &str,
    mut batches: mpsc::Receiver<Batch>,
) -> Result<(), Error> {
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
                    let (mut cutter, mut result) = (Cutter::default(), Ok(()));
                    let mut take = |line: &[u8]| if result.is_ok() { result = tail.line(line) };
                    cutter.cut(&lines, &mut take);
                    cutter.finish(&mut take);
                    result?;
                    since.get_or_insert_with(Instant::now);
                }
                Some(Err(problem)) => eprintln!("netpol-trace tail: {}", crate::text::escape(&problem)),
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
    Ok(tail.finish(out)?)
}

/// Sends what `input` has until its end; false when nobody listens any more.
fn pump(mut input: impl Read, cutter: &mut Cutter, to_tail: &mpsc::Sender<Batch>) -> bool {
    let mut octets = vec![0; READ];
    loop {
        let read = match input.read(&mut octets) {
            Ok(0) => return true,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let _ = to_tail.blocking_send(Err(error.to_string()));
                return true;
            }
        };
        let mut lines = Vec::with_capacity(read);
        cutter.cut(octets.get(..read).unwrap_or_default(), |line| {
            lines.extend_from_slice(line);
            lines.push(b'\n');
        });
        if !lines.is_empty() && to_tail.blocking_send(Ok(lines)).is_err() {
            return false;
        }
    }
}

/// Sends what a file has and gets, also when it is replaced (rotated) or emptied.
fn follow(path: &Path, mut file: File, to_tail: &mpsc::Sender<Batch>) {
    let mut cutter = Cutter::default();
    while pump(&mut file, &mut cutter, to_tail) && !to_tail.is_closed() {
        std::thread::sleep(LOOK_AGAIN);
        if let Some(next) = replaced(path, &mut file) {
            // What came between the last look and the replacement is still in the old file.
            if !pump(&mut file, &mut cutter, to_tail) {
                return;
            }
            cutter = Cutter::default();
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
