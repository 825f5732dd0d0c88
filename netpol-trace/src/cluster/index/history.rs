//! What was in force before, kept for a while: owners of addresses, versions of policies, labels of pods and namespaces.
//!
//! Only what changed is kept, as what to undo: an index without changes has no history, and costs nothing.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::HashMap;
use crate::model::Str;
use crate::model::cluster::{Namespace, Pod, Policy};

/// What ended longer ago is forgotten. A record is made within seconds of its packet.
const KEPT_FOR: SignedDuration = SignedDuration::from_mins(10);
/// More than this is not kept: some 10 MB when all of it is pods.
pub(super) const MAX_KEPT: usize = 10_000;
/// A clock that was set back by more makes all earlier times worthless.
const CLOCK_SET_BACK: SignedDuration = SignedDuration::from_secs(5);

#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// When the latest change was learned: a later moment needs no history.
    last: Option<Timestamp>,
    /// Oldest first.
    claims: HashMap<IpAddr, VecDeque<Claim>>,
    /// Policies and labels of namespaces: oldest first, by namespace.
    undo: HashMap<Str, VecDeque<Undo<Before>>>,
    /// The same pod with other labels or ports: oldest first. By pod, since pods change far more often than all else, and
    /// a drop must not cost more because its pods' neighbours change.
    pods: HashMap<PodName, VecDeque<Undo<Arc<Pod>>>>,
    /// Where the oldest of everything is.
    order: VecDeque<(Timestamp, HistoryEntry)>,
    /// Forgotten before its time, because there was too much.
    crowded_out: u64,
}

/// A pod had an address, as far as was known on this machine's clock.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) pod: Arc<Pod>,
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

/// What held until then.
#[derive(Debug, Clone)]
pub(super) struct Undo<B> {
    pub(super) until: Timestamp,
    pub(super) before: B,
}

#[derive(Debug, Clone)]
pub(super) enum Before {
    /// The Namespace object; `None`: it was not there.
    Namespace(Option<Arc<Namespace>>),
    /// The policy of that name; `None`: there was none.
    Policy(Str, Option<Arc<Policy>>),
}

/// Namespace and name.
type PodName = (Str, Str);

#[derive(Debug, Clone)]
enum HistoryEntry {
    Address(IpAddr),
    Namespace(Str),
    Pod(PodName),
}

impl History {
    /// Whether something may have changed after `time`.
    pub(super) fn reaches(&self, time: Timestamp) -> bool {
        self.last.is_some_and(|last| last > time)
    }

    /// Something changed; also without anything to undo (a new pod).
    pub(super) fn touch(&mut self, at: Timestamp) {
        if self.last.is_some_and(|last| last.duration_since(at) > CLOCK_SET_BACK) {
            let crowded_out = self.crowded_out;
            *self = History { crowded_out, ..History::default() };
        }
        self.last = self.last.max(Some(at));
    }

    pub(super) fn claim(&mut self, ip: IpAddr, claim: Claim) {
        self.touch(claim.until);
        self.order.push_back((claim.until, HistoryEntry::Address(ip)));
        self.claims.entry(ip).or_default().push_back(claim);
    }

    pub(super) fn undo(&mut self, namespace: &Str, until: Timestamp, before: Before) {
        self.touch(until);
        self.order.push_back((until, HistoryEntry::Namespace(namespace.clone())));
        self.undo.entry(namespace.clone()).or_default().push_back(Undo { until, before });
    }

    /// `before` had these labels and ports until then.
    pub(super) fn undo_pod(&mut self, until: Timestamp, before: Arc<Pod>) {
        self.touch(until);
        let entry = (before.namespace.clone(), before.key());
        self.order.push_back((until, HistoryEntry::Pod(entry.clone())));
        self.pods.entry(entry).or_default().push_back(Undo { until, before });
    }

    /// Forgets what is too old or too much.
    pub(super) fn forget(&mut self, now: Timestamp) {
        while let Some((until, _)) = self.order.front() {
            let old = now.duration_since(*until) > KEPT_FOR;
            if !old && self.order.len() <= MAX_KEPT {
                return;
            }
            self.crowded_out += u64::from(!old);
            match self.order.pop_front() {
                Some((_, HistoryEntry::Address(ip))) => pop(&mut self.claims, &ip),
                Some((_, HistoryEntry::Namespace(name))) => pop(&mut self.undo, &name),
                Some((_, HistoryEntry::Pod(entry))) => pop(&mut self.pods, &entry),
                None => {}
            }
        }
    }

    /// The former claims on an address, oldest first.
    pub(super) fn claims(&self, ip: IpAddr) -> impl DoubleEndedIterator<Item = &Claim> {
        self.claims.get(&ip).into_iter().flatten()
    }

    /// What to undo for a namespace as of `time`, latest first.
    pub(super) fn since(&self, name: &str, time: Timestamp) -> impl Iterator<Item = &Undo<Before>> {
        let kept = self.undo.get(name).into_iter().flat_map(|undo| undo.iter().rev());
        kept.take_while(move |undo| undo.until > time)
    }

    /// What to undo for this very pod as of `time`, latest first.
    pub(super) fn of_pod_since(&self, pod: &Pod, time: Timestamp) -> impl Iterator<Item = &Undo<Arc<Pod>>> {
        // Most pods have no history, and an index without any is asked for each drop too.
        let entry = (!self.pods.is_empty()).then(|| (pod.namespace.clone(), pod.key()));
        let kept = entry.and_then(|entry| self.pods.get(&entry)).into_iter().flat_map(|undo| undo.iter().rev());
        kept.take_while(move |undo| undo.until > time).filter(|undo| undo.before.is_same(pod))
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn crowded_out(&self) -> u64 {
        self.crowded_out
    }
}

fn pop<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, VecDeque<V>>, key: &K) {
    if let Some(kept) = map.get_mut(key) {
        kept.pop_front();
        if kept.is_empty() {
            map.remove(key);
        }
    }
}
