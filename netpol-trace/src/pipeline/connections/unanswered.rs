//! Finds connections that got no reply although no drop explains it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::cluster::Index;
use crate::cluster::index::Moment;
use crate::model::packet::transport_name;
use crate::model::{Direction, Enrichment, Family, Part, UnansweredBasis};
use crate::pipeline::build::endpoint;
use crate::pipeline::connections::table::{OpenConnection, Sighting};
use crate::pipeline::connections::{AddressPort, ConnectionTuple, Flows, KernelFlows};
use crate::pipeline::enrich;
use crate::pipeline::enrich::Identity;
use crate::pipeline::opener::looks_like_answer;
use crate::policy;
use crate::record::community_id::community_id;
use crate::record::{Body, Network, Unanswered};

/// How long a reply may take. TCP has sent its SYN three times by then.
pub const GRACE: Duration = Duration::from_secs(5);
/// Window in which one client, server and port get one record, with the number of connections.
const WINDOW: Duration = Duration::from_secs(60);
/// TCP's last retransmissions are 64 s apart: a connection that sends nothing for longer is over.
const TCP_IDLE: Duration = Duration::from_secs(70);
const UDP_IDLE: Duration = Duration::from_secs(10);
/// Records in one window; more are counted.
const MAX_RECORDS: usize = 1000;
/// Time after attaching in which UDP is not reported: replies to earlier packets look like opening packets.
const UDP_SETTLING: Duration = Duration::from_secs(15);

/// Unanswered connections of one client to one server's port.
#[derive(Debug, Clone, PartialEq)]
pub struct UnansweredConnection {
    /// The latest connection.
    pub tuple: ConnectionTuple,
    pub from_pod: bool,
    /// CLOCK_MONOTONIC of the first packet, ns.
    pub opened: u64,
    pub length: u32,
    /// Packets that the latest connection sent.
    pub packets: u32,
    /// Connections.
    pub count: u64,
    pub device: Option<String>,
    /// Its packets reached the destination pod's interface: the pod itself did not reply.
    pub delivered: bool,
    pub sees_drops: bool,
}

/// Client, server and port: the key of a window.
type Route = (IpAddr, u8, AddressPort);

/// Windows in which a record was written.
#[derive(Debug, Default)]
pub struct ReportWindows {
    open: HashMap<Route, (Instant, Option<UnansweredConnection>)>,
}

impl<K: KernelFlows> Flows<K> {
    /// Returns the connections whose time for a reply is over, and at the end of a window those that its first record does not count.
    pub fn unanswered(&mut self, now: Instant) -> Vec<UnansweredConnection> {
        let mut found = Vec::new();
        while let Some((sighting, open)) = self.table.next_due(now) {
            let finding = self.decide(sighting, open, now);
            found.extend(finding.and_then(|finding| self.aggregate(finding, now)));
        }
        self.unanswered.open.retain(|_, (until, more)| {
            if *until > now {
                return true;
            }
            let Some(more) = more.take() else { return false };
            found.push(more);
            *until = now + WINDOW;
            true
        });
        self.tally.unanswered += found.iter().map(|finding| finding.count).sum::<u64>();
        found
    }

    fn decide(&mut self, sighting: Sighting, mut open: OpenConnection, now: Instant) -> Option<UnansweredConnection> {
        let state = self.kernel.state(&open.key)?;
        let (tuple, interface) = sighting;
        let udp = tuple.protocol == crate::model::packet::UDP;
        let counted = (state.packets, state.replies);
        let finding =
            if open.decided || state.replies > 0 { None } else { self.evaluate(&sighting, &open, state.packets, now) };
        let quiet = open.counted == Some(counted) || udp && open.counted.is_none() && counted.0 + counted.1 <= 2;
        let gone = self.kernel.interface(interface).is_none();
        if quiet || gone || self.table.is_crowded() {
            self.kernel.forget(&open.key);
        } else {
            open.decided = true;
            open.counted = Some(counted);
            self.table.keep(sighting, open, now + if udp { UDP_IDLE } else { TCP_IDLE });
        }
        finding
    }

    fn evaluate(
        &mut self,
        sighting: &Sighting,
        open: &OpenConnection,
        packets: u32,
        now: Instant,
    ) -> Option<UnansweredConnection> {
        let (tuple, interface) = *sighting;
        if tuple.protocol == crate::model::packet::UDP && !self.is_certain(&tuple, interface) {
            return None;
        }
        let others = || self.table.of_client(tuple.client, tuple.protocol).filter(|(other, _)| *other != sighting);
        // One connection is seen at both pods' interfaces, and the client's side reports it. Behind NAT the server's address differs.
        if !open.from_pod && others().any(|(_, other)| other.from_pod) {
            return None;
        }
        let delivered = !open.from_pod || others().filter(|(_, other)| !other.from_pod).count() == 1;
        if self.dropped.time(&tuple).is_some() || others().any(|((other, _), _)| self.dropped.time(other).is_some()) {
            return None;
        }
        if self.sees_drops && self.dropped.is_incomplete(now) {
            self.tally.unanswered_unreported += 1;
            return None;
        }
        Some(UnansweredConnection {
            tuple,
            from_pod: open.from_pod,
            opened: open.opened,
            length: open.length,
            packets,
            count: 1,
            device: self.kernel.interface(interface),
            delivered,
            sees_drops: self.sees_drops,
        })
    }

    /// Returns true if the first packet seen certainly opened the exchange. Late replies look like opening packets.
    pub(super) fn is_certain(&self, tuple: &ConnectionTuple, interface: u32) -> bool {
        !looks_like_answer(tuple.client.1, tuple.server.1)
            && self.kernel.watched_for(interface).is_some_and(|time| time > UDP_SETTLING + GRACE)
    }

    /// Counts a finding as one without a record.
    pub fn leave_out(&mut self, finding: &UnansweredConnection) {
        self.tally.unanswered -= finding.count;
        self.tally.unanswered_unreported += finding.count;
    }

    /// Reports the first finding of a key at once and the others at the end of the window.
    fn aggregate(&mut self, finding: UnansweredConnection, now: Instant) -> Option<UnansweredConnection> {
        let route = (finding.tuple.client.0, finding.tuple.protocol, finding.tuple.server);
        if let Some((_, more)) = self.unanswered.open.get_mut(&route) {
            let count = more.take().map_or(0, |more| more.count) + 1;
            *more = Some(UnansweredConnection { count, ..finding });
            return None;
        }
        if self.unanswered.open.len() >= MAX_RECORDS {
            self.tally.unanswered_unreported += 1;
            return None;
        }
        self.unanswered.open.insert(route, (now + WINDOW, None));
        Some(finding)
    }
}

/// Names both endpoints of a finding.
pub fn flow<'a>(finding: &UnansweredConnection, moment: &'a Moment<'_>) -> enrich::Flow<'a> {
    let ConnectionTuple { client, protocol, server } = finding.tuple;
    let end = enrich::identify(moment, server.0, Some(server.1));
    enrich::Flow {
        source: enrich::identify(moment, client.0, Some(client.1)),
        destination: enrich::with_service(moment.index, end, protocol, server.0, Some(server.1)),
        protocol,
        reply: false,
        opener_known: true,
        tracked: false,
        dst_nat: false,
    }
}

/// Builds the record of a finding, with the verdict on its connection.
pub fn body(
    finding: &UnansweredConnection,
    flow: &enrich::Flow<'_>,
    index: &Index,
    options: &policy::CniOptions,
    names: Vec<String>,
    time: Timestamp,
    stale: &[String],
) -> Body {
    let ConnectionTuple { client, protocol, server } = finding.tuple;
    // Policies are about pods, and which backend a service chose is not known here.
    let mut verdict = (!matches!(flow.destination.identity, Identity::Service))
        .then(|| Part::new(policy::verdict_of(index, &flow.connection(time), options)));
    if let Some(verdict) = &mut verdict {
        enrich::qualify(verdict, flow, stale);
    }
    let mut destination = endpoint(&flow.destination);
    destination.names = names;
    Body::Unanswered(Box::new(Unanswered {
        count: finding.count,
        packets: u64::from(finding.packets),
        waited_seconds: GRACE.as_secs(),
        direction: if finding.from_pod { Direction::Egress } else { Direction::Ingress },
        basis: if finding.sees_drops { UnansweredBasis::NoAnswerAndNoDropSeen } else { UnansweredBasis::NoAnswerSeen }
            .into(),
        delivered: finding.delivered,
        source: endpoint(&flow.source),
        destination,
        network: Network {
            transport: transport_name(protocol),
            family: if client.0.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
            tcp_flags: if protocol == crate::model::packet::TCP { vec!["syn".into()] } else { Vec::new() },
            community_id: community_id((client.0, server.0), protocol, Some((client.1, server.1)), None),
            length: finding.length,
            fragment: false,
        },
        device: finding.device.clone(),
        enrichment: if !stale.is_empty() {
            Enrichment::Stale
        } else if flow.may_be_named_later() {
            Enrichment::Timeout
        } else {
            Enrichment::Complete
        },
        verdict,
        hint: None,
        truncated: false,
    }))
}
