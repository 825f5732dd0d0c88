//! The agents of a cluster, all at once: which are listened to, which don't answer, and which come and go.

mod answers;
mod known;
mod listen;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{Error, TailArgs, live};
use crate::cluster::access_review::READER;
use crate::cluster::agents::{Agent, Agents, AgentsError};
use crate::tail::stream::Tail;
use crate::text::escape;
pub(super) use answers::Answers;
use listen::{Listener, Way};

/// Up to so many agents are all asked.
const FEW: usize = 50;
/// Agents whose history is read at the same time.
const AT_ONCE: usize = 20;
/// New, moved and restarted agents are looked for this often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Batches on their way from the listeners.
const BATCHES: usize = 64;
/// Nodes that a message names.
const NAMED: usize = 8;

/// Shows the records of the cluster's agents.
pub(super) fn run(args: &TailArgs, out: &mut impl Write) -> Result<(Tail, Answers), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(ask(args, out));
    // Streams that still wait are not waited for.
    runtime.shutdown_background();
    result
}

async fn ask(args: &TailArgs, out: &mut impl Write) -> Result<(Tail, Answers), Error> {
    let (agents, own) = Agents::connect(&args.api.access(), &args.agents_namespace).await?;
    let wanted = super::wanted(args, Some(&own))?;
    let mut tail = Tail::new(wanted.clone(), super::form(args));
    let all = agents.list().await?;
    if all.is_empty() {
        return Err(Error::NoAgent(args.agents_namespace.clone()));
    }
    let way = way(args, &agents, &wanted).await?;
    let known = known::look(&agents, &wanted, args.selector.as_deref(), &all).await;
    known.nodes.iter().for_each(|node| tail.relate(node));
    if known.everywhere {
        tail.relate_all();
    }
    let tip = if args.namespace.is_none() && args.pod.is_empty() && !args.all_namespaces {
        " (-n names another namespace, -A shows all)"
    } else {
        ""
    };
    known.notes.iter().for_each(|note| eprintln!("note: {}{tip}", escape(note)));
    let mut nodes = None;
    if all.len() > FEW && !args.all_nodes && !wanted.pods.is_empty() {
        let mut of_pods = Nodes { pods: wanted.pods.clone(), asked: BTreeSet::new() };
        for (namespace, name) in of_pods.find(&agents).await {
            say(&format!("where {namespace}/{name} runs can't be told; --all-nodes asks every node"));
        }
        nodes = Some(of_pods);
    }
    let (to_tail, batches) = mpsc::channel(BATCHES);
    let answers = Shared::default();
    let listener = Listener {
        agents: agents.clone(),
        way: Arc::new(way),
        since: wanted.since,
        follow: args.follow,
        pods: wanted.pods.iter().map(|(_, name)| name.clone()).collect(),
        to_tail,
        places: Arc::new(Semaphore::new(AT_ONCE)),
        answers: answers.clone(),
        remedy: Arc::default(),
    };
    let (peers, new_peers) = mpsc::unbounded_channel();
    let listening = tokio::spawn(keep_listening(listener, all, nodes, args.follow, peers, new_peers));
    let waits_for = format!("waiting for {}; Ctrl-C ends", wanted.describe(None));
    let shown = live::show(&mut tail, out, &waits_for, batches).await;
    listening.abort();
    shown?;
    Ok((tail, answers.get()))
}

/// Who has answered so far, as all listeners note it.
#[derive(Debug, Default, Clone)]
struct Shared(Arc<Mutex<Answers>>);

impl Shared {
    fn note(&self, note: impl FnOnce(&mut Answers)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn get(&self) -> Answers {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// By the logs, or as a service account by the listener.
async fn way(args: &TailArgs, agents: &Agents, wanted: &crate::tail::select::Selection) -> Result<Way, Error> {
    let Some(account) = &args.service_account else { return Ok(Way::Logs) };
    let mut namespaces: BTreeSet<String> = wanted.pods.iter().map(|(namespace, _)| namespace.clone()).collect();
    if namespaces.is_empty() {
        namespaces.extend(wanted.namespace.clone());
    }
    let Some(home) = namespaces.first().cloned() else {
        return Err(Error::Usage("--service-account: of which namespace? -n names it".to_owned()));
    };
    if account == READER && namespaces.len() > 1 {
        let named: Vec<_> = namespaces.iter().map(String::as_str).collect();
        return Err(Error::Usage(format!(
            "{READER} sees its own namespace only, and these are {}: ask for one namespace at a time",
            named.join(", ")
        )));
    }
    // Dedup now, so that what is wrong with the account is said once.
    agents.token(&home, account).await?;
    Ok(Way::Listener {
        namespaces: namespaces.into_iter().collect(),
        home,
        account: account.clone(),
        port: args.tail_port,
    })
}

/// In a large cluster: only the nodes of the pods that are looked for, and of the peers that turn up.
struct Nodes {
    pods: Vec<(String, String)>,
    asked: BTreeSet<String>,
}

impl Nodes {
    /// Adds where the pods are now; the ones that are nowhere.
    async fn find(&mut self, agents: &Agents) -> Vec<&(String, String)> {
        let mut nowhere = Vec::new();
        for pod in &self.pods {
            match agents.pod(&pod.0, &pod.1).await.ok().flatten().and_then(|pod| pod.node) {
                Some(node) => drop(self.asked.insert(node)),
                None => nowhere.push(pod),
            }
        }
        nowhere
    }
}

/// Listens to the agents that there are, and with `follow` to those that come.
async fn keep_listening(
    listener: Listener,
    mut all: Vec<Agent>,
    mut nodes: Option<Nodes>,
    follow: bool,
    to_peers: mpsc::UnboundedSender<String>,
    mut peers: mpsc::UnboundedReceiver<String>,
) {
    let mut heard: BTreeMap<String, Agent> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let (mut told, mut away) = (String::new(), false);
    // Reported once.
    let mut not_running = BTreeSet::new();
    let to_peers = nodes.is_some().then_some(to_peers);
    loop {
        let chosen = all.iter().filter(|agent| nodes.as_ref().is_none_or(|nodes| nodes.asked.contains(&agent.node)));
        for agent in chosen.cloned().collect::<Vec<_>>() {
            if !agent.running {
                listener.answers.note(|answers| answers.silent(&agent, "its agent does not run"));
                if not_running.insert(agent.pod.clone()) {
                    say(&format!("node {} is not listened to: its agent does not run", agent.node));
                }
            } else if !heard.contains_key(&agent.pod) {
                listener.answers.note(|answers| answers.asked(&agent));
                heard.insert(agent.pod.clone(), agent.clone());
                tasks.spawn(listener.clone().listen(agent, to_peers.clone()));
            }
        }
        let names: BTreeSet<&str> = heard.values().map(|agent| agent.node.as_str()).collect();
        let is_other = |agent: &&Agent| nodes.as_ref().is_some_and(|nodes| !nodes.asked.contains(&agent.node));
        let others = all.iter().filter(is_other).count();
        listener.answers.note(|answers| answers.others = others);
        let now = summary(&names, all.len());
        if now != told {
            say(&now);
            told = now;
        }
        tokio::select! {
            Some(peer) = peers.recv() => {
                if let Some(nodes) = &mut nodes {
                    nodes.asked.insert(peer);
                }
                continue;
            }
            Some(ended) = tasks.join_next() => {
                if let Ok(pod) = ended {
                    if follow {
                        heard.remove(&pod);
                    }
                    if !follow && tasks.is_empty() && peers.is_empty() {
                        return;
                    }
                }
                if !follow {
                    continue;
                }
            }
            () = tokio::time::sleep(LOOK_AGAIN), if follow => {}
            else => return,
        }
        match listener.agents.list().await {
            Ok(found) => (all, away) = (found, false),
            Err(error) if !std::mem::replace(&mut away, true) => {
                say(&format!("new agents can't be looked for: {error}"))
            }
            Err(_) => {}
        }
        // Pods move, and new ones get names that were there before.
        if let Some(nodes) = &mut nodes {
            nodes.find(&listener.agents).await;
        }
    }
}

fn summary(nodes: &BTreeSet<&str>, of: usize) -> String {
    let mut named: Vec<_> = nodes.iter().take(NAMED).copied().collect();
    let more = format!("{} more", nodes.len().saturating_sub(NAMED));
    if nodes.len() > NAMED {
        named.push(&more);
    }
    format!("listening to {} of {of} nodes: {}", nodes.len(), named.join(", "))
}

fn say(what: &str) {
    eprintln!("netpol-trace tail: {}", escape(what));
}

/// Says from when a node can answer, where that is later than what was asked for.
fn say_reach(node: &str, reaches: Timestamp, since: Option<Timestamp>, by: Duration) {
    let late = since.is_some_and(|since| reaches.duration_since(since).unsigned_abs() > by && reaches > since);
    if late {
        say(&format!("node {node} can answer from {reaches:.0} on, not before"));
    }
}

/// The way for who may not read the agents' logs.
fn say_remedy() {
    say("without access to the agents' logs, see the drops of your namespace with -n NAMESPACE --service-account");
}

/// What went wrong with one node's agent.
fn say_silent(node: &str, error: &AgentsError) {
    say(&format!("node {node} does not answer: {error}"));
}
