//! Listens to one agent: reads its log or its tail listener, and reconnects after a break where it left off.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::AsyncReadExt;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Semaphore, mpsc};

use super::agents::{SharedResponses, report_failure, report_reach, report_remedy};
use super::live::Batch;
use crate::backoff::Backoff;
use crate::cluster::agents::{Agent, Agents, AgentsError, RecordsRequest};
use crate::record::lines::LineSplitter;
use crate::record::read::RecordView;
use crate::tail::line::ParsedLine;
use crate::tail::stream::LogId;

/// After a break, reads again from this long before the last record: a record can be written up to two minutes after its time (an
/// unanswered connection). Dedup hides what was shown.
const OVERLAP: SignedDuration = SignedDuration::from_secs(180);
/// Between attempts to reconnect.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
/// An agent writes a status each minute. If the oldest record of a log is further than this from `--since`, the log does not reach back.
const STATUS: Duration = Duration::from_secs(90);

/// How agents are reached.
#[derive(Debug)]
pub(super) enum AgentChannel {
    Logs,
    /// As the service account `account` of namespace `home`.
    TailListener {
        namespaces: Vec<String>,
        home: String,
        account: String,
        port: u16,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Listener {
    /// All agents are one log: their lines are not numbered.
    pub log: LogId,
    pub agents: Agents,
    pub channel: Arc<AgentChannel>,
    pub since: Option<Timestamp>,
    pub follow: bool,
    /// Names of the selected pods.
    pub pods: Vec<String>,
    pub to_tail: mpsc::Sender<Batch>,
    pub permits: Arc<Semaphore>,
    pub responses: SharedResponses,
    /// Set once the remedy is reported: once for all agents.
    pub remedy: Arc<OnceLock<()>>,
}

/// What was read of one agent so far.
struct Progress {
    node: String,
    splitter: LineSplitter,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    /// Where to send the nodes of the selected pods' peers, and those that were sent.
    peers: Option<mpsc::UnboundedSender<String>>,
    peers_sent: BTreeSet<String>,
}

impl Listener {
    /// Listens until the agent's log ends; with `follow` until the agent's pod is deleted. Returns the pod's name.
    pub async fn listen(self, agent: Agent, peers: Option<mpsc::UnboundedSender<String>>) -> String {
        let mut progress = Progress {
            node: agent.node.clone(),
            splitter: LineSplitter::default(),
            first: None,
            last: None,
            peers,
            peers_sent: BTreeSet::new(),
        };
        let mut backoff = BACKOFF;
        let mut reported = false;
        loop {
            let before = progress.last;
            let read = self.read(&agent, &mut progress).await;
            if self.to_tail.is_closed() {
                return agent.pod;
            }
            if let Err(error) = &read {
                self.responses.update(|responses| responses.failed(&agent, &error.to_string()));
                if !std::mem::replace(&mut reported, true) {
                    report_failure(&agent.node, error);
                    if matches!(error, AgentsError::MayNotReadLog { .. }) && self.remedy.set(()).is_ok() {
                        report_remedy();
                    }
                }
            }
            if progress.last > before {
                (backoff, reported) = (BACKOFF, false);
            }
            if !self.follow {
                return agent.pod;
            }
            if !self.exists(&agent).await {
                self.responses.update(|responses| responses.removed(&agent));
                return agent.pod;
            }
            backoff.wait().await;
        }
    }

    /// Returns true also if the API server cannot be request.
    async fn exists(&self, agent: &Agent) -> bool {
        self.agents.list().await.map_or(true, |all| all.iter().any(|other| other.pod == agent.pod))
    }

    async fn read(&self, agent: &Agent, progress: &mut Progress) -> Result<(), AgentsError> {
        let since = progress.last.and_then(|last| last.checked_sub(OVERLAP).ok()).or(self.since);
        // The semaphore is never closed. A stream that is followed has no end, so it returns its permit once it is open.
        let mut permit = self.permits.acquire().await.ok();
        let reconnects = progress.last.is_some();
        match &*self.channel {
            AgentChannel::Logs => {
                if reconnects && let Ok(log) = self.agents.log(agent, since, false, true).await {
                    // The log of the container before its restart.
                    self.read_log(log, progress).await?;
                }
                let log = self.agents.log(agent, since, self.follow, false).await?;
                self.responses.update(|responses| responses.responded(agent));
                if self.follow {
                    permit.take();
                }
                self.read_log(log, progress).await?;
                // An agent writes a record when it starts and each minute, unless its records go elsewhere.
                let from = self.since.map(|since| Timestamp::now().duration_since(since).unsigned_abs());
                if !self.follow && progress.first.is_none() && from.is_none_or(|from| from > STATUS) {
                    return Err(AgentsError::Refused(
                        "no record in its log; are its records written elsewhere?".to_owned(),
                    ));
                }
                Ok(())
            }
            AgentChannel::TailListener { namespaces, home, account, port } => {
                progress.splitter = LineSplitter::default();
                let token = self.agents.token(home, account).await?;
                let request = RecordsRequest { namespaces: namespaces.clone(), since, follow: self.follow };
                let mut answer = self.agents.records(agent, *port, &token, &request).await?;
                self.responses.update(|responses| responses.responded(agent));
                if self.follow {
                    permit.take();
                }
                if let Some(oldest) = answer.reaches_back_to.filter(|_| !reconnects) {
                    report_reach(&agent.node, oldest, self.since, Duration::ZERO);
                }
                while let Some(bytes) = answer.next().await {
                    if !self.send(&bytes?, progress).await {
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
        // Discards half a line of a stream that broke.
        progress.splitter = LineSplitter::default();
        let mut log = std::pin::pin!(log);
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let read = log.read(&mut bytes).await.map_err(|error| AgentsError::Refused(error.to_string()))?;
            if read == 0 || !self.send(bytes.get(..read).unwrap_or_default(), progress).await {
                return Ok(());
            }
        }
    }

    /// Sends the complete lines. Returns false if nobody receives them any more.
    async fn send(&self, bytes: &[u8], progress: &mut Progress) -> bool {
        let mut lines = Vec::new();
        let mut splitter = std::mem::take(&mut progress.splitter);
        splitter.split(bytes, |line| {
            let parsed = ParsedLine::parse(line);
            if let Some(parsed) = &parsed {
                self.note(parsed.record(), progress);
            }
            lines.push(parsed.ok_or_else(|| line.to_vec()));
        });
        progress.splitter = splitter;
        lines.is_empty() || self.to_tail.send(Batch::Records(self.log, lines)).await.is_ok()
    }

    /// Keeps the times of the first and the last record, and sends the nodes of the selected pods' peers.
    fn note(&self, record: &RecordView<'_>, progress: &mut Progress) {
        if progress.first.is_none() {
            progress.first = Some(record.time);
            // A log begins with the agent's start, or where the kubelet rotated it.
            report_reach(&progress.node, record.time, self.since, STATUS);
        }
        progress.last = progress.last.max(Some(record.time));
        let Some(peers) = &progress.peers else { return };
        let pods = || record.endpoints().filter_map(|end| end.pod.as_ref());
        if pods().any(|pod| self.pods.iter().any(|name| **name == *pod.name)) {
            for node in pods().map(|pod| &pod.node).filter(|node| !node.is_empty()) {
                if progress.peers_sent.insert(node.to_string()) {
                    let _ = peers.send(node.to_string());
                }
            }
        }
    }
}
