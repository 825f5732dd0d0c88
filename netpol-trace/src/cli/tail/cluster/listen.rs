//! One agent listened to: its log or its listener, again after a break, from where it was.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::AsyncReadExt;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Semaphore, mpsc};

use super::{Shared, say_reach, say_remedy, say_silent};
use crate::cli::tail::live::Batch;
use crate::cluster::agents::{Agent, Agents, AgentsError, Asked};
use crate::record::lines::LineSplitter;
use crate::record::read;

/// After a break, from this much before the last record, since records are written later than what they tell: a connection
/// without an answer after two minutes. What was shown before is not shown again.
const OVERLAP: SignedDuration = SignedDuration::from_secs(180);
/// Between attempts; doubled each time up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Agents write a status each minute: a log without a record for longer does not reach back.
const STATUS: Duration = Duration::from_secs(90);

/// How an agent is reached.
#[derive(Debug)]
pub(super) enum Way {
    Logs,
    /// As the service account `account` of namespace `home`.
    Listener {
        namespaces: Vec<String>,
        home: String,
        account: String,
        port: u16,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub agents: Agents,
    pub way: Arc<Way>,
    pub since: Option<Timestamp>,
    pub follow: bool,
    /// KnownNames of the pods that are looked for.
    pub pods: Vec<String>,
    pub to_tail: mpsc::Sender<Batch>,
    pub places: Arc<Semaphore>,
    pub answers: Shared,
    /// What helps is said once, not for each agent.
    pub remedy: Arc<OnceLock<()>>,
}

/// What one agent has said so far.
struct Progress {
    node: String,
    splitter: LineSplitter,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    peers: Option<mpsc::UnboundedSender<String>>,
    known: BTreeSet<String>,
}

impl Listener {
    /// Until the agent's log ends; when following, until its pod is gone. Returns the pod's name.
    pub async fn listen(self, agent: Agent, peers: Option<mpsc::UnboundedSender<String>>) -> String {
        let mut progress = Progress {
            node: agent.node.clone(),
            splitter: LineSplitter::default(),
            first: None,
            last: None,
            peers,
            known: BTreeSet::new(),
        };
        let mut pause = PAUSE.0;
        let mut quiet = false;
        loop {
            let before = progress.last;
            let heard = self.hear(&agent, &mut progress).await;
            if self.to_tail.is_closed() {
                return agent.pod;
            }
            if let Err(error) = &heard {
                self.answers.note(|answers| answers.silent(&agent, &error.to_string()));
            }
            if let Err(error) = &heard
                && !std::mem::replace(&mut quiet, true)
            {
                say_silent(&agent.node, error);
                if matches!(error, AgentsError::MayNotReadLog { .. }) && self.remedy.set(()).is_ok() {
                    say_remedy();
                }
            }
            if progress.last > before {
                (pause, quiet) = (PAUSE.0, false);
            }
            if !self.follow {
                return agent.pod;
            }
            if !self.is_still_there(&agent).await {
                self.answers.note(|answers| answers.gone(&agent));
                return agent.pod;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// As far as can be told: an API server that is away takes no pod with it.
    async fn is_still_there(&self, agent: &Agent) -> bool {
        self.agents.list().await.map_or(true, |all| all.iter().any(|other| other.pod == agent.pod))
    }

    async fn hear(&self, agent: &Agent, progress: &mut Progress) -> Result<(), AgentsError> {
        let since = progress.last.and_then(|last| last.checked_sub(OVERLAP).ok()).or(self.since);
        // Never closed. Who follows has no end for which others could wait.
        let mut place = self.places.acquire().await.ok();
        let again = progress.last.is_some();
        match &*self.way {
            Way::Logs => {
                if again && let Ok(log) = self.agents.log(agent, since, false, true).await {
                    // What its container said before it was started again.
                    self.read_log(log, progress).await?;
                }
                let log = self.agents.log(agent, since, self.follow, false).await?;
                self.answers.note(|answers| answers.answered(agent));
                if self.follow {
                    place.take();
                }
                self.read_log(log, progress).await?;
                // An agent writes a record when it starts and each minute, unless it writes them elsewhere.
                let from = self.since.map(|since| Timestamp::now().duration_since(since).unsigned_abs());
                if !self.follow && progress.first.is_none() && from.is_none_or(|from| from > STATUS) {
                    return Err(AgentsError::Refused(
                        "no record in its log; are its records written elsewhere?".to_owned(),
                    ));
                }
                Ok(())
            }
            Way::Listener { namespaces, home, account, port } => {
                progress.splitter = LineSplitter::default();
                let token = self.agents.token(home, account).await?;
                let asked = Asked { namespaces: namespaces.clone(), since, follow: self.follow };
                let mut answer = self.agents.records(agent, *port, &token, &asked).await?;
                self.answers.note(|answers| answers.answered(agent));
                if self.follow {
                    place.take();
                }
                if let Some(reaches) = answer.reaches_back_to.filter(|_| !again) {
                    say_reach(&agent.node, reaches, self.since, Duration::ZERO);
                }
                while let Some(octets) = answer.next().await {
                    if !self.pass_on(&octets?, progress).await {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    async fn read_log(
        &self,
        log: impl futures::io::AsyncRead + Send,
        progress: &mut Progress,
    ) -> Result<(), AgentsError> {
        // Half a line of a stream that broke is none of this one's.
        progress.splitter = LineSplitter::default();
        let mut log = std::pin::pin!(log);
        let mut octets = vec![0; 64 * 1024];
        loop {
            let read = log.read(&mut octets).await.map_err(|error| AgentsError::Refused(error.to_string()))?;
            if read == 0 || !self.pass_on(octets.get(..read).unwrap_or_default(), progress).await {
                return Ok(());
            }
        }
    }

    /// Sends whole lines on; false when nobody listens any more.
    async fn pass_on(&self, octets: &[u8], progress: &mut Progress) -> bool {
        let mut lines = Vec::with_capacity(octets.len());
        let mut splitter = std::mem::take(&mut progress.splitter);
        splitter.cut(octets, |line| {
            self.note(line, progress);
            lines.extend_from_slice(line);
            lines.push(b'\n');
        });
        progress.splitter = splitter;
        lines.is_empty() || self.to_tail.send(Ok(lines)).await.is_ok()
    }

    /// Keeps the times of the first and the last record, and the nodes of the pods' peers.
    fn note(&self, line: &[u8], progress: &mut Progress) {
        let Some(record) = read::read(line) else { return };
        if progress.first.is_none() {
            progress.first = Some(record.time);
            // A log begins with the agent's start, or where it was cut.
            say_reach(&progress.node, record.time, self.since, STATUS);
        }
        progress.last = progress.last.max(Some(record.time));
        let Some(peers) = &progress.peers else { return };
        let pods = || record.ends().filter_map(|end| end.pod.as_ref());
        if pods().any(|pod| self.pods.iter().any(|name| **name == *pod.name)) {
            for node in pods().map(|pod| &pod.node).filter(|node| !node.is_empty()) {
                if progress.known.insert(node.to_string()) {
                    let _ = peers.send(node.to_string());
                }
            }
        }
    }
}
