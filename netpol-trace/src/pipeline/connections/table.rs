//! Connections that wait for a reply, by their opener.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::time::Instant;

use netpol_trace_common::tc::{FROM_POD, FlowEvent, FlowKey};

use crate::kernel::tc::MAX_FLOWS;
use crate::pipeline::connections::{AddressPort, ConnectionTuple, GRACE};

/// A connection at one interface.
pub type Sighting = (ConnectionTuple, u32);

/// Connections of one client port that a search looks at.
const SIBLINGS: usize = 16;

#[derive(Debug, Default)]
pub struct ConnectionTable {
    /// Sorted, so that the connections of one client are neighbours.
    open: BTreeMap<Sighting, OpenConnection>,
    due: BTreeSet<(Instant, Sighting)>,
    known: HashSet<FlowKey>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenConnection {
    pub key: FlowKey,
    pub from_pod: bool,
    /// CLOCK_MONOTONIC, ns.
    pub opened: u64,
    pub length: u32,
    /// The connection was reported as unanswered, or a drop explained it.
    pub decided: bool,
    /// Packets and replies at the last look.
    pub counted: Option<(u32, u32)>,
    due: Instant,
}

impl ConnectionTable {
    /// Adds a connection. Returns false if there is no room: the kernel side should remove it.
    pub fn open(&mut self, flow: &FlowEvent, now: Instant) -> bool {
        let from_pod = flow.direction == FROM_POD;
        let sighting = (ConnectionTuple::of(&flow.key, from_pod), flow.key.ifindex);
        self.remove(&sighting);
        if self.open.len() >= MAX_FLOWS as usize {
            return false;
        }
        let due = now + GRACE;
        let open = OpenConnection {
            key: flow.key,
            from_pod,
            opened: flow.time,
            length: flow.length,
            decided: false,
            counted: None,
            due,
        };
        self.open.insert(sighting, open);
        self.due.insert((due, sighting));
        self.known.insert(flow.key);
        true
    }

    /// Removes and returns the next connection that is due.
    pub fn next_due(&mut self, now: Instant) -> Option<(Sighting, OpenConnection)> {
        let (due, sighting) = *self.due.first()?;
        if due > now {
            return None;
        }
        let open = self.remove(&sighting)?;
        Some((sighting, open))
    }

    /// Puts a connection back, due again at `due`.
    pub fn keep(&mut self, sighting: Sighting, open: OpenConnection, due: Instant) {
        self.open.insert(sighting, OpenConnection { due, ..open });
        self.due.insert((due, sighting));
        self.known.insert(open.key);
    }

    fn remove(&mut self, sighting: &Sighting) -> Option<OpenConnection> {
        let open = self.open.remove(sighting)?;
        self.due.remove(&(open.due, *sighting));
        self.known.remove(&open.key);
        Some(open)
    }

    pub fn knows(&self, key: &FlowKey) -> bool {
        self.known.contains(key)
    }

    pub fn is_crowded(&self) -> bool {
        self.open.len() > MAX_FLOWS as usize * 3 / 4
    }

    /// Returns a bounded number of the connections that `client` opened: a scan from one port opens thousands.
    pub fn of_client(&self, client: AddressPort, protocol: u8) -> impl Iterator<Item = (&Sighting, &OpenConnection)> {
        self.open.range(client_range(client, protocol)).take(SIBLINGS)
    }

    /// Returns the entries of this connection at all interfaces that saw it.
    pub fn of(&self, tuple: ConnectionTuple) -> impl Iterator<Item = (&Sighting, &OpenConnection)> {
        self.open.range((tuple, 0)..=(tuple, u32::MAX))
    }
}

fn client_range(client: AddressPort, protocol: u8) -> RangeInclusive<Sighting> {
    let first = (std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
    let last = (std::net::Ipv6Addr::from(u128::MAX).into(), u16::MAX);
    (ConnectionTuple { client, protocol, server: first }, 0)
        ..=(ConnectionTuple { client, protocol, server: last }, u32::MAX)
}
