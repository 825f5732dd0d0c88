//! The stages, called in order: the map of the program.
//!
//! ```text
//! kernel event ─> packet ─> enriched flow ─> verdict ─> record ─> sink
//! ```

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::books::{Books, Intake};
use crate::cause::{self, Circumstances};
use crate::cluster::api::Lookups;
use crate::cluster::{Cluster, Index};
use crate::config::{Ends, live};
use crate::enrich::{self, Flow, OwnedBy};
use crate::flows::{self, Flows, Origin};
use crate::inventory::Watcher;
use crate::kernel::RawDrop;
use crate::kernel::clock::Clock;
use crate::kernel::tc::View;
use crate::output::Output;
use crate::packet::{self, Candidate, Packet, PacketError};
use crate::record::build::{Decision, drop_body};
use crate::record::{Body, Cause, Enrichment, Hint};
use crate::sink::SinkError;
use crate::verdict::{self, Asked, Connection};

/// How long an end inside the pod network without a known owner may wait for its name.
const NAMING_TIME: Duration = Duration::from_secs(3);
/// Packets that may wait at once; more go out unnamed.
const MAX_HELD: usize = 10_000;
/// A policy younger than this may not be enforced everywhere yet.
const GRACE: Duration = Duration::from_secs(10);
/// Network namespaces remembered as conntrack's.
const MAX_NETNS: usize = 4096;

pub struct Pipeline {
    cluster: Cluster,
    node: Option<String>,
    all_drops: bool,
    options: verdict::Options,
    pub clock: Clock,
    pub books: Books,
    pub intake: Arc<Intake>,
    held: VecDeque<Held>,
    tracked_netns: HashSet<u32>,
    /// With the tc hook.
    pub flows: Option<Flows<View>>,
    inventory: Option<Watcher>,
    /// With the API server as source.
    pub lookups: Option<Lookups>,
    config: Option<tokio::sync::watch::Receiver<live::State>>,
    /// What the config file says of records, as of the last look.
    pub configured: live::State,
    pub output: Output,
}

/// A drop that waits for the name of one of its ends.
struct Held {
    packet: Packet,
    facts: packet::Facts,
    origin: Origin,
    deadline: Instant,
}

impl Pipeline {
    pub fn new(
        cluster: Cluster,
        node: Option<String>,
        all_drops: bool,
        intake: Arc<Intake>,
        output: Output,
    ) -> Pipeline {
        Pipeline {
            cluster,
            node,
            all_drops,
            options: verdict::Options::default(),
            clock: Clock::now(),
            books: Books::default(),
            intake,
            held: VecDeque::new(),
            tracked_netns: HashSet::new(),
            flows: None,
            inventory: None,
            lookups: None,
            config: None,
            configured: live::State::default(),
            output,
        }
    }

    /// Judges drops of the agent's own network namespace with what can drop there.
    pub fn with_inventory(mut self, inventory: Watcher) -> Pipeline {
        self.inventory = Some(inventory);
        self
    }

    /// Follows the config file.
    pub fn with_config(mut self, config: tokio::sync::watch::Receiver<live::State>) -> Pipeline {
        self.configured = config.borrow().clone();
        self.config = Some(config);
        self
    }

    /// Takes up what the config file says now; whether that is news.
    pub fn reconfigured(&mut self) -> bool {
        let Some(config) = self.config.as_mut().filter(|config| config.has_changed().unwrap_or(false)) else {
            return false;
        };
        self.configured = config.borrow_and_update().clone();
        true
    }

    /// One drop, through all stages.
    pub fn handle(&mut self, raw: RawDrop) -> Result<(), SinkError> {
        let RawDrop { event, facts } = raw;
        let origin = Origin { iif: event.iif, netns: facts.netns };
        let packet = match packet::decode(&event) {
            Ok(packet) => packet,
            // ARP, LLDP and the like: no policy speaks of them.
            Err(PacketError::NotIp) => {
                self.leave_out(Cause::NotPolicy);
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(
                    reason = facts.reason.as_deref(),
                    kind = error.kind(),
                    "a drop without a readable packet"
                );
                self.books.lost_undecoded += 1;
                self.output.metrics().error("packet", error.kind());
                return Ok(());
            }
        };
        if facts.site.candidate == Candidate::Noise {
            self.leave_out(Cause::NotPolicy);
            return Ok(());
        }
        if let Some(flows) = &mut self.flows {
            flows.saw_drop(&packet, Instant::now());
        }
        if let (Some(netns), true) = (facts.netns, packet.conntrack.is_some())
            && self.tracked_netns.len() < MAX_NETNS
        {
            self.tracked_netns.insert(netns);
        }
        let may_wait =
            self.held.len() < MAX_HELD && matches!(facts.site.candidate, Candidate::Policy | Candidate::Maybe);
        let cluster = self.cluster.clone();
        let index = cluster.read();
        let mut flow = enrich::name(&packet, &index);
        self.doubt(&mut flow, &index, self.clock.wall(packet.time), true);
        if may_wait && flow.may_be_named_later() {
            self.books.held += 1;
            self.held.push_back(Held { packet, facts, origin, deadline: Instant::now() + NAMING_TIME });
            return Ok(());
        }
        self.finish(&index, &packet, &facts, origin, flow)
    }

    /// Looks again at what waits: named now, or out of time.
    pub fn revisit(&mut self, all: bool) -> Result<(), SinkError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let cluster = self.cluster.clone();
        let index = cluster.read();
        let now = Instant::now();
        for held in std::mem::take(&mut self.held) {
            let mut flow = enrich::name(&held.packet, &index);
            self.doubt(&mut flow, &index, self.clock.wall(held.packet.time), false);
            if !all && flow.may_be_named_later() && held.deadline > now {
                self.held.push_back(held);
            } else {
                self.books.held -= 1;
                self.finish(&index, &held.packet, &held.facts, held.origin, flow)?;
            }
        }
        Ok(())
    }

    /// Takes away names that the source can't vouch for at the time of the packet, and has them looked up if `ask`.
    fn doubt(&self, flow: &mut Flow<'_>, index: &Index, time: Timestamp, ask: bool) {
        let Some(lookups) = &self.lookups else { return };
        for end in [&mut flow.source, &mut flow.destination] {
            let doubtful = match end.owner {
                OwnedBy::Pod(view) => !lookups.vouches(view.pod, end.ip, time),
                OwnedBy::External => lookups.may_be_a_pods(end.ip, index),
                OwnedBy::Unknown => true,
                OwnedBy::Node(_) | OwnedBy::Service | OwnedBy::Ambiguous(_) => false,
            };
            if doubtful {
                end.owner = OwnedBy::Unknown;
                if ask {
                    lookups.ask(end.ip);
                }
            }
        }
    }

    /// Judges a named flow and writes its record.
    fn finish(
        &mut self,
        index: &Index,
        packet: &Packet,
        facts: &packet::Facts,
        origin: Origin,
        flow: Flow<'_>,
    ) -> Result<(), SinkError> {
        let time = self.clock.wall(packet.time);
        let watched = self.inventory.as_ref().and_then(Watcher::current);
        let inventory = watched.as_deref().filter(|inventory| inventory.is_of(facts.netns));
        let facts = &packet::Facts { site: cause::firm_up(facts.site, packet.family(), inventory), ..facts.clone() };
        let about = Circumstances {
            site: facts.site,
            headers: &packet.headers,
            untracked: packet.untracked,
            netns_tracks: facts.netns.is_some_and(|netns| self.tracked_netns.contains(&netns)),
            policy_changing: policy_changing(&flow, time),
            node: self.node.as_deref(),
            own_node: cause::own_node(&flow),
            service_has_endpoints: cause::service_has_endpoints(&flow, index),
            inventory,
            family: packet.family(),
            device: facts.device.as_deref(),
            rejected: facts.rejected,
            answers: facts.answers,
        };
        let decision = match cause::without_verdict(&flow, &about) {
            Some(cause) => Decision {
                cause,
                action: cause::action(cause, &about),
                direction: None,
                verdict: None,
                hint: None,
                enrichment: self.enrichment(&flow),
            },
            None => {
                let connection = flow.connection(time);
                let mut verdict = verdict::judge(index, &connection, &self.options);
                let cause = cause::with_verdict(&mut verdict, &about);
                Decision {
                    cause,
                    action: cause::action(cause, &about),
                    direction: cause::direction(&flow, &verdict, about.node),
                    hint: (cause == Cause::Policy).then(|| self.hint(index, &connection, &flow)).flatten(),
                    verdict: Some(verdict),
                    enrichment: self.enrichment(&flow),
                }
            }
        };
        let admitted = self.configured.settings.admits(Some(decision.cause), &Ends::of_flow(&flow));
        if !admitted || (!self.all_drops && !decision.cause.is_default()) {
            self.leave_out(decision.cause);
            return Ok(());
        }
        *self.books.causes.entry(decision.cause).or_default() += 1;
        let mut body = drop_body(packet, facts, &flow, decision);
        if let (Some(flows), Body::Drop(drop)) = (&mut self.flows, &mut body) {
            flows.annotate(drop, packet, origin, index, Instant::now());
        }
        self.configured.settings.redact(&mut body);
        self.output.write(body, time, 1)
    }

    /// The usual mistake behind a denied connection.
    fn hint(&self, index: &Index, connection: &Connection<'_>, flow: &Flow<'_>) -> Option<Hint> {
        let asked = Asked {
            service: flow.destination.service.as_ref(),
            original: flow.destination.original.as_ref(),
            source_port: flow.source.port,
        };
        verdict::hint(index, connection, &self.options, asked)
    }

    /// Counts a packet that gets no line.
    fn leave_out(&mut self, cause: Cause) {
        self.books.filtered += 1;
        *self.books.causes.entry(cause).or_default() += 1;
    }

    /// Writes connections that died in silence.
    pub fn unanswered(&mut self) -> Result<(), SinkError> {
        let now = Instant::now();
        let found = self.flows.as_mut().map(|flows| flows.unanswered(now)).unwrap_or_default();
        if found.is_empty() {
            return Ok(());
        }
        let cluster = self.cluster.clone();
        let index = cluster.read();
        for finding in &found {
            let time = self.clock.wall(finding.opened);
            let names_of = |flows: &Flows<View>| flows.names_of(finding.tuple.client.0, finding.tuple.server.0, now);
            let names = self.flows.as_ref().map(names_of).unwrap_or_default();
            let mut flow = flows::flow(finding, &index);
            self.doubt(&mut flow, &index, time, true);
            let mut body = flows::body(finding, &flow, &index, &self.options, names, time, self.cluster.synced());
            if let Body::Unanswered(silent) = &body
                && !self.configured.settings.admits(None, &Ends::of_record(&silent.source, &silent.destination))
            {
                if let Some(flows) = &mut self.flows {
                    flows.leave_out(finding);
                }
                continue;
            }
            self.configured.settings.redact(&mut body);
            self.output.write(body, time, 0)?;
        }
        Ok(())
    }

    fn enrichment(&self, flow: &Flow<'_>) -> Enrichment {
        if !self.cluster.synced() {
            Enrichment::Stale
        } else if flow.may_be_named_later() {
            Enrichment::Timeout
        } else {
            Enrichment::Complete
        }
    }

    /// Writes a record that is not a drop.
    pub fn tell(&mut self, body: Body, time: Timestamp) -> Result<(), SinkError> {
        self.output.write(body, time, 0)
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

/// Whether a policy of either end's namespace changed within [`GRACE`] before `time`.
fn policy_changing(flow: &Flow<'_>, time: Timestamp) -> bool {
    [flow.source.pod(), flow.destination.pod()]
        .into_iter()
        .flatten()
        .flat_map(|view| view.namespace.policies())
        .filter_map(|policy| policy.changed)
        .any(|changed| time.duration_since(changed).unsigned_abs() <= GRACE)
}
