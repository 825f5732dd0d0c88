//! One reader of the listener: the thread that reads the history for it, and the part of each line that the reader may see.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::agent::tail_server::Serving;
use crate::agent::tail_server::slots::ReaderSlot;
use crate::cluster::access_review::{ReviewError, Reviewer, User};
use crate::history::Follower;
use crate::http::Stalled;
use crate::record::format;
use crate::record::format::Format;
use crate::record::read;
use crate::record::{Record, restrict};
use crate::storage::Folder;

/// Period of looks for new lines, which another thread writes.
const POLL: Duration = Duration::from_millis(100);
/// Period of access reviews while a reader is connected.
const REVIEW_AGAIN: Duration = Duration::from_secs(60);

/// Lines, or the reason why there are no more. After an error the response breaks off, so that the reader does not take it for complete.
type LineBatch = io::Result<Vec<u8>>;

/// The request of a reader, and the channel to it.
#[derive(Debug)]
pub(super) struct RecordStream {
    pub user: User,
    /// Empty: the reader sees all namespaces.
    pub namespaces: Vec<String>,
    pub since: Option<Timestamp>,
    pub follow: bool,
    pub to_reader: mpsc::Sender<LineBatch>,
    pub slot: ReaderSlot,
    pub stalled: Stalled,
}

impl RecordStream {
    /// Sends what the reader may see until the end of the history, or until the reader goes. Runs in a thread that may wait for the disk.
    pub fn start(self, serving: Serving, token: String, folder: Folder) {
        let ended = Arc::new(OnceLock::new());
        let (alive, gone) = oneshot::channel();
        let mut view = VisibleLines {
            user: self.user.clone(),
            namespaces: self.namespaces.clone(),
            since: self.since,
            reviewer: serving.reviewer.clone(),
            handle: Handle::current(),
            may: HashMap::new(),
        };
        let follower = Follower::new(folder, self.since.map(SystemTime::from));
        let review = review_again(serving, token, (self.user.clone(), self.namespaces.clone()), gone, ended.clone());
        tokio::spawn(review);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = self.read(follower, &mut view, &ended) {
                tracing::warn!(%error, user = self.user.name(), "a reader of --tail-listen is disconnected");
                let _ = self.to_reader.blocking_send(Err(error));
            }
            if self.stalled.is_stalled() {
                tracing::warn!(user = self.user.name(), "a reader of --tail-listen did not read and is disconnected");
            }
            drop((self.slot, alive));
        });
    }

    fn read(&self, mut follower: Follower, view: &mut VisibleLines, ended: &OnceLock<&'static str>) -> io::Result<()> {
        loop {
            if let Some(why) = ended.get() {
                return Err(io::Error::other(*why));
            }
            let (mut batch, mut failed) = (Vec::new(), None);
            let more = follower.read(|line| {
                if failed.is_none() {
                    failed = view.line(line, &mut batch).err();
                }
            });
            if !batch.is_empty() && self.to_reader.blocking_send(Ok(batch)).is_err() {
                return Ok(());
            }
            if let Some(error) = failed {
                return Err(io::Error::other(error));
            }
            match more? {
                true => {}
                false if self.follow && !self.to_reader.is_closed() => std::thread::sleep(POLL),
                false => return Ok(()),
            }
        }
    }
}

/// Ends a reader whose token has expired, whose permission is gone, or whose groups have changed. Keeps the token until the reader goes.
async fn review_again(
    serving: Serving,
    token: String,
    (user, namespaces): (User, Vec<String>),
    mut gone: oneshot::Receiver<()>,
    ended: Arc<OnceLock<&'static str>>,
) {
    loop {
        tokio::select! {
            _ = &mut gone => return,
            () = tokio::time::sleep(REVIEW_AGAIN) => {}
        }
        let why = match serving.admit(&token, &namespaces).await {
            Ok(now) if now.is_same(&user) => continue,
            Ok(_) => "the API server describes the token's owner differently",
            Err(_) => "the token is not valid any more, or the API server does not confirm it",
        };
        let _ = ended.set(why);
        return;
    }
}

/// The lines that one reader may see.
struct VisibleLines {
    user: User,
    /// Empty: the reader sees all namespaces.
    namespaces: Vec<String>,
    since: Option<Timestamp>,
    reviewer: Arc<Reviewer>,
    handle: Handle,
    /// Whether the reader may read a namespace, for the namespaces of the current line.
    may: HashMap<String, bool>,
}

impl VisibleLines {
    /// Appends what the reader may see of a line.
    ///
    /// # Errors
    /// The API server does not say what the reader may see.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), ReviewError> {
        let Some(seen) = read::read(line) else { return Ok(()) };
        if self.since.is_some_and(|since| seen.last_time.unwrap_or(seen.time) < since) {
            return Ok(());
        }
        if self.namespaces.is_empty() {
            out.extend_from_slice(line);
            out.push(b'\n');
            return Ok(());
        }
        let of = |end: &read::EndpointView<'_>| {
            let pod = end.pod.as_ref().map(|pod| pod.namespace.to_string());
            pod.or_else(|| end.service.as_ref().map(|service| service.namespace.to_string()))
        };
        let mut theirs: Vec<String> = seen.endpoints().filter_map(of).collect();
        if &*seen.kind == "policy_change" {
            theirs.push(seen.namespace.to_string());
        }
        if &*seen.kind != "loss" && !theirs.iter().any(|ns| self.namespaces.contains(ns)) {
            return Ok(());
        }
        let Ok(record) = serde_json::from_slice::<Record>(line) else { return Ok(()) };
        self.may.clear();
        for namespace in theirs {
            // The other endpoint's namespace may be one that the request does not name.
            let may = self.handle.block_on(self.reviewer.may_read(&self.user, &namespace))?;
            self.may.insert(namespace, may);
        }
        if let Some(record) = restrict::restricted(record, |ns| self.may.get(ns).copied().unwrap_or(false)) {
            let before = out.len();
            if format::line(Format::Native, &record, out).is_err() {
                out.truncate(before);
            }
        }
        Ok(())
    }
}
