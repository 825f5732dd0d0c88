//! Connections that wait for a reply, by their opener.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::time::Instant;

use netpol_trace_common::tc::{FROM_POD, FlowEvent, FlowKey};

use crate::kernel::tc::MAX_FLOWS;
use crate::pipeline::connections::{End, GRACE, Tuple};

/// A connection at one interface.
pub type Place = (Tuple, u32);

/// Connections of one client port that a search looks at.
const SIBLINGS: usize = 16;

#[derive(Debug, Default)]
pub struct Table {
    /// Sorted, so that the connections of one client are neighbours.
    open: BTreeMap<Place, Open>,
    due: BTreeSet<(Instant, Place)>,
    known: HashSet<FlowKey>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Open {
    pub key: FlowKey,
    pub from_pod: bool,
    /// CLOCK_MONOTONIC, ns.
    pub opened: u64,
    pub length: u32,
    /// The connection was reported as unanswered, or a drop explained it.
    pub settled: bool,
    /// Packets and replies at the last look.
    pub counted: Option<(u32, u32)>,
    due: Instant,
}

impl Table {
    /// Adds a connection. Returns false if there is no room: the kernel side should remove it.
    pub fn open(&mut self, flow: &FlowEvent, now: Instant) -> bool {
        let from_pod = flow.direction == FROM_POD;
        let place = (Tuple::of(&flow.key, from_pod), flow.key.ifindex);
        self.remove(&place);
        if self.open.len() >= MAX_FLOWS as usize {
            return false;
        }
        let due = now + GRACE;
        let open = Open {
            key: flow.key,
            from_pod,
            opened: flow.time,
            length: flow.length,
            settled: false,
            counted: None,
            due,
        };
        self.open.insert(place, open);
        self.due.insert((due, place));
        self.known.insert(flow.key);
        true
    }

    /// Removes and returns the next connection that is due.
    pub fn next_due(&mut self, now: Instant) -> Option<(Place, Open)> {
        let (due, place) = *self.due.first()?;
        if due > now {
            return None;
        }
        let open = self.remove(&place)?;
        Some((place, open))
    }

    /// Puts a connection back, due again at `due`.
    pub fn keep(&mut self, place: Place, open: Open, due: Instant) {
        self.open.insert(place, Open { due, ..open });
        self.due.insert((due, place));
        self.known.insert(open.key);
    }

    fn remove(&mut self, place: &Place) -> Option<Open> {
        let open = self.open.remove(place)?;
        self.due.remove(&(open.due, *place));
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
    pub fn of_client(&self, client: End, protocol: u8) -> impl Iterator<Item = (&Place, &Open)> {
        self.open.range(client_range(client, protocol)).take(SIBLINGS)
    }

    /// Returns the entries of this connection at all interfaces that saw it.
    pub fn of(&self, tuple: Tuple) -> impl Iterator<Item = (&Place, &Open)> {
        self.open.range((tuple, 0)..=(tuple, u32::MAX))
    }
}

fn client_range(client: End, protocol: u8) -> RangeInclusive<Place> {
    let first = (std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
    let last = (std::net::Ipv6Addr::from(u128::MAX).into(), u16::MAX);
    (Tuple { client, protocol, server: first }, 0)..=(Tuple { client, protocol, server: last }, u32::MAX)
}
