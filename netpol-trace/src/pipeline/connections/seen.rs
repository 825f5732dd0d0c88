//! Connections with a recent event.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::pipeline::connections::ConnectionTuple;

const MAX: usize = 32 * 1024;
/// Longer than any connection waits for its reply.
const KEPT: Duration = Duration::from_secs(30);

/// Recent events, bounded in number, with a mark for the time in which some are missing.
#[derive(Debug, Default)]
pub struct RecentEvents {
    /// The kernel's time of the latest event, and when the event was read.
    events: HashMap<ConnectionTuple, (u64, Instant)>,
    incomplete_until: Option<Instant>,
}

impl RecentEvents {
    pub fn insert(&mut self, tuple: ConnectionTuple, time: u64, now: Instant) {
        if self.events.len() >= MAX && !self.events.contains_key(&tuple) {
            self.events.retain(|_, (_, read_at)| now.duration_since(*read_at) < KEPT);
            if self.events.len() >= MAX {
                // Clearing costs less than a scan for each packet of a flood.
                self.events.clear();
                self.mark_incomplete(now);
            }
        }
        self.events.insert(tuple, (time, now));
    }

    /// The kernel's time of the latest event, ns.
    pub fn time(&self, tuple: &ConnectionTuple) -> Option<u64> {
        self.events.get(tuple).map(|(time, _)| *time)
    }

    /// Notes that events were missed.
    pub fn mark_incomplete(&mut self, now: Instant) {
        self.incomplete_until = Some(now + KEPT);
    }

    pub fn is_incomplete(&self, now: Instant) -> bool {
        self.incomplete_until.is_some_and(|until| until > now)
    }
}
