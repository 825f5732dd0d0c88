//! Shows the records of a cluster's agents: listens to all of them at once, and follows agents that come and go.

mod pods;
mod responses;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::listen::{AgentChannel, Listener};
use super::{NODES_NAMED, TailError, live, report};
use crate::cluster::access_review::READER;
use crate::cluster::agents::{Agent, Agents, AgentsError};
use crate::cluster::api::Access;
use crate::lock::IgnorePoison;
use crate::tail::render::Rendering;
use crate::tail::select::{Selection, SelectionArgs};
use crate::tail::stream::Tail;
use crate::text::escape;
pub use responses::AgentResponses;

/// Up to this many agents, all are asked.
const FEW: usize = 50;
/// Agents whose history is read at the same time.
const AT_ONCE: usize = 20;
/// New, moved and restarted agents are looked up this often.
const RELIST: Duration = Duration::from_secs(5);
/// Batches between the listeners and [`live::show`].
const BATCHES: usize = 64;

/// Which agents to ask, for what, and how.
#[derive(Debug)]
pub struct AgentsRequest {
    pub access: Access,
    pub agents_namespace: String,
    pub selection: SelectionArgs,
    pub follow: bool,
    /// Ask every node's agent, also in a large cluster.
    pub all_nodes: bool,
    /// Ask as this service account, by the agents' `--tail-listen`.
    pub service_account: Option<String>,
    pub tail_port: u16,
}

/// Shows the records of the cluster's agents.
pub fn show(
    request: &AgentsRequest,
    rendering: Rendering,
    out: &mut impl Write,
) -> Result<(Tail, AgentResponses), TailError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(ask(request, rendering, out));
    // Does not wait for streams that are still open.
    runtime.shutdown_background();
    result
}

async fn ask(
    request: &AgentsRequest,
    rendering: Rendering,
    out: &mut impl Write,
) -> Result<(Tail, AgentResponses), TailError> {
    let (agents, context_namespace) = Agents::connect(&request.access, &request.agents_namespace).await?;
    let selection = request.selection.resolve(Some(&context_namespace)).map_err(TailError::Usage)?;
    let mut tail = Tail::new(selection.clone(), rendering);
    let all = agents.list().await?;
    if all.is_empty() {
        return Err(TailError::NoAgent(request.agents_namespace.clone()));
    }
    let channel = channel(request, &agents, &selection).await?;
    let selected = pods::look_up(&agents, &selection, request.selection.labels.as_deref(), &all).await;
    selected.nodes.iter().for_each(|node| tail.add_node(node));
    if selected.on_every_node {
        tail.add_every_node();
    }
    let SelectionArgs { namespace, pods, all_namespaces, .. } = &request.selection;
    let by_context = namespace.is_none() && pods.is_empty() && !all_namespaces;
    let tip = if by_context { " (-n selects another namespace, -A all)" } else { "" };
    selected.notes.iter().for_each(|note| eprintln!("note: {}{tip}", escape(note)));
    let mut nodes = None;
    if all.len() > FEW && !request.all_nodes && !selection.pods.is_empty() {
        let mut of_pods = NodesAsked { pods: selection.pods.clone(), nodes: BTreeSet::new() };
        for (namespace, name) in of_pods.find(&agents).await {
            report(&format!("cannot tell on which node {namespace}/{name} runs; --all-nodes asks every node"));
        }
        nodes = Some(of_pods);
    }
    let (to_tail, batches) = mpsc::channel(BATCHES);
    let responses = SharedResponses::default();
    let listener = Listener {
        log: tail.add_log(None),
        agents: agents.clone(),
        channel: Arc::new(channel),
        since: selection.since,
        follow: request.follow,
        pods: selection.pods.iter().map(|(_, name)| name.clone()).collect(),
        to_tail,
        permits: Arc::new(Semaphore::new(AT_ONCE)),
        responses: responses.clone(),
        remedy: Arc::default(),
    };
    let (peers, new_peers) = mpsc::unbounded_channel();
    let listening = tokio::spawn(keep_listening(listener, all, nodes, request.follow, peers, new_peers));
    let waiting = format!("waiting for {}; stop with Ctrl-C", selection.describe(None));
    let shown = live::show(&mut tail, out, &waiting, batches).await;
    listening.abort();
    shown?;
    Ok((tail, responses.get()))
}

/// The responses so far, updated by all listeners.
#[derive(Debug, Default, Clone)]
pub(super) struct SharedResponses(Arc<Mutex<AgentResponses>>);

impl SharedResponses {
    pub fn update(&self, update: impl FnOnce(&mut AgentResponses)) {
        update(&mut self.0.lock().ignore_poison());
    }

    fn get(&self) -> AgentResponses {
        self.0.lock().ignore_poison().clone()
    }
}

/// Chooses how to reach the agents: by their logs, or with a service account by their tail listener.
async fn channel(request: &AgentsRequest, agents: &Agents, selection: &Selection) -> Result<AgentChannel, TailError> {
    let Some(account) = &request.service_account else { return Ok(AgentChannel::Logs) };
    let mut namespaces: BTreeSet<String> = selection.pods.iter().map(|(namespace, _)| namespace.clone()).collect();
    if namespaces.is_empty() {
        namespaces.extend(selection.namespace.clone());
    }
    let Some(home) = namespaces.first().cloned() else {
        return Err(TailError::Usage("--service-account needs the namespace of the account: -n NAMESPACE".to_owned()));
    };
    if account == READER && namespaces.len() > 1 {
        let named: Vec<_> = namespaces.iter().map(String::as_str).collect();
        return Err(TailError::Usage(format!(
            "{READER} may see its own namespace only, and --pod names {}: ask for one namespace at a time",
            named.join(", ")
        )));
    }
    // Made here first, so that an error is reported once and not by every listener.
    agents.token(&home, account).await?;
    Ok(AgentChannel::TailListener {
        namespaces: namespaces.into_iter().collect(),
        home,
        account: account.clone(),
        port: request.tail_port,
    })
}

/// In a large cluster: the nodes of the selected pods, and of peers that appear in records.
struct NodesAsked {
    pods: Vec<(String, String)>,
    nodes: BTreeSet<String>,
}

impl NodesAsked {
    /// Adds the nodes where the pods run now. Returns the pods that run nowhere.
    async fn find(&mut self, agents: &Agents) -> Vec<&(String, String)> {
        let mut nowhere = Vec::new();
        for pod in &self.pods {
            match agents.pod(&pod.0, &pod.1).await.ok().flatten().and_then(|pod| pod.node) {
                Some(node) => drop(self.nodes.insert(node)),
                None => nowhere.push(pod),
            }
        }
        nowhere
    }
}

/// Listens to the agents, and with `follow` to those that appear later.
async fn keep_listening(
    listener: Listener,
    mut all: Vec<Agent>,
    mut nodes: Option<NodesAsked>,
    follow: bool,
    to_peers: mpsc::UnboundedSender<String>,
    mut peers: mpsc::UnboundedReceiver<String>,
) {
    let mut listened_to: BTreeMap<String, Agent> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let (mut reported, mut list_failed) = (String::new(), false);
    // Each is reported once.
    let mut not_running = BTreeSet::new();
    let to_peers = nodes.is_some().then_some(to_peers);
    loop {
        let is_asked = |agent: &Agent| nodes.as_ref().is_none_or(|nodes| nodes.nodes.contains(&agent.node));
        let (asked, others): (Vec<&Agent>, Vec<&Agent>) = all.iter().partition(|agent| is_asked(agent));
        for agent in asked {
            if !agent.running {
                listener.responses.update(|responses| responses.failed(agent, "its agent does not run"));
                if not_running.insert(agent.pod.clone()) {
                    report(&format!("cannot listen to node {}: its agent does not run", agent.node));
                }
            } else if !listened_to.contains_key(&agent.pod) {
                listener.responses.update(|responses| responses.requested(agent));
                listened_to.insert(agent.pod.clone(), agent.clone());
                tasks.spawn(listener.clone().listen(agent.clone(), to_peers.clone()));
            }
        }
        listener.responses.update(|responses| responses.others = others.len());
        let names: BTreeSet<&str> = listened_to.values().map(|agent| agent.node.as_str()).collect();
        let now = summary(&names, all.len());
        if now != reported {
            report(&now);
            reported = now;
        }
        tokio::select! {
            Some(peer) = peers.recv() => {
                if let Some(nodes) = &mut nodes {
                    nodes.nodes.insert(peer);
                }
                continue;
            }
            Some(ended) = tasks.join_next() => {
                if let Ok(pod) = ended {
                    if follow {
                        listened_to.remove(&pod);
                    }
                    if !follow && tasks.is_empty() && peers.is_empty() {
                        return;
                    }
                }
                if !follow {
                    continue;
                }
            }
            () = tokio::time::sleep(RELIST), if follow => {}
            else => return,
        }
        match listener.agents.list().await {
            Ok(found) => (all, list_failed) = (found, false),
            Err(error) if !std::mem::replace(&mut list_failed, true) => {
                report(&format!("cannot look for new agents: {error}"));
            }
            Err(_) => {}
        }
        // Pods move to other nodes, and new pods get the names of deleted ones.
        if let Some(nodes) = &mut nodes {
            nodes.find(&listener.agents).await;
        }
    }
}

fn summary(nodes: &BTreeSet<&str>, of: usize) -> String {
    let mut named: Vec<_> = nodes.iter().take(NODES_NAMED).copied().collect();
    let more = format!("{} more", nodes.len().saturating_sub(NODES_NAMED));
    if nodes.len() > NODES_NAMED {
        named.push(&more);
    }
    format!("listening to {} of {of} nodes: {}", nodes.len(), named.join(", "))
}

/// Reports from when on a node has records, if that is more than `tolerance` later than `since`.
pub(super) fn report_reach(node: &str, oldest: Timestamp, since: Option<Timestamp>, tolerance: Duration) {
    let late = since.is_some_and(|since| oldest.duration_since(since).unsigned_abs() > tolerance && oldest > since);
    if late {
        report(&format!("node {node} has records from {oldest:.0} on, none from before"));
    }
}

/// Suggests `--service-account` to a user who may not read the agents' logs.
pub(super) fn report_remedy() {
    report("without access to the agents' logs, see the drops of your namespace with -n NAMESPACE --service-account");
}

pub(super) fn report_failure(node: &str, error: &AgentsError) {
    report(&format!("no answer from node {node}: {error}"));
}
