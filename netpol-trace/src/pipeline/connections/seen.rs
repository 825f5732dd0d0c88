//! Connections with a recent event.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::pipeline::connections::ConnectionTuple;

const MAX: usize = 32 * 1024;
/// Longer than any connection waits for its answer.
const KEPT: Duration = Duration::from_secs(30);

/// A bounded memory of recent events that knows when it is incomplete.
#[derive(Debug, Default)]
pub struct RecentEvents {
    /// The kernel's time of the latest event, and when the event was read.
    events: HashMap<ConnectionTuple, (u64, Instant)>,
    blind_until: Option<Instant>,
}

impl RecentEvents {
    pub fn insert(&mut self, tuple: ConnectionTuple, time: u64, now: Instant) {
        if self.events.len() >= MAX && !self.events.contains_key(&tuple) {
            self.events.retain(|_, (_, told)| now.duration_since(*told) < KEPT);
            if self.events.len() >= MAX {
                // Clearing costs less than a scan for each packet of a flood.
                self.events.clear();
                self.blind(now);
            }
        }
        self.events.insert(tuple, (time, now));
    }

    /// The kernel's time of the latest event, ns.
    pub fn time(&self, tuple: &ConnectionTuple) -> Option<u64> {
        self.events.get(tuple).map(|(time, _)| *time)
    }

    /// Notes that events were missed.
    pub fn blind(&mut self, now: Instant) {
        self.blind_until = Some(now + KEPT);
    }

    pub fn is_blind(&self, now: Instant) -> bool {
        self.blind_until.is_some_and(|until| until > now)
    }
}
