//! Recent history of the index: owners of addresses, versions of policies, labels of pods and namespaces.
//!
//! Keeps only changes, in the form that undoes them. An index without changes has no history, which costs nothing.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::HashMap;
use crate::model::Str;
use crate::model::cluster::{Namespace, Pod, Policy};

/// Age at which history is removed. A record is made within seconds of its packet.
const KEPT_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Changes that are kept at most: some 10 MB if all of them are pods.
pub(in crate::cluster) const MAX_KEPT: usize = 10_000;
/// If the clock was set back by more than this, all earlier times are useless.
const CLOCK_SET_BACK: SignedDuration = SignedDuration::from_secs(5);

#[derive(Debug, Clone, Default)]
pub(in crate::cluster) struct History {
    /// The time of the latest change. A later moment needs no history.
    last: Option<Timestamp>,
    /// Oldest first.
    claims: HashMap<IpAddr, VecDeque<Claim>>,
    /// Policies and labels of namespaces: oldest first, by namespace.
    undo: HashMap<Str, VecDeque<Undo<Before>>>,
    /// The same pod with other labels or ports: oldest first. By pod, because pods change far more often than other objects, and
    /// changes of other pods must not make a drop more expensive.
    pods: HashMap<PodName, VecDeque<Undo<Arc<Pod>>>>,
    /// The maps' keys in the order of time, for removal.
    order: VecDeque<(Timestamp, HistoryEntry)>,
    /// Changes that were removed early, because there were too many.
    crowded_out: u64,
}

/// A pod had an address, on this machine's clock.
#[derive(Debug, Clone)]
pub(in crate::cluster) struct Claim {
    pub(in crate::cluster) pod: Arc<Pod>,
    pub(in crate::cluster) from: Timestamp,
    pub(in crate::cluster) until: Timestamp,
}

/// The state before a change, valid until the time of the change.
#[derive(Debug, Clone)]
pub(in crate::cluster) struct Undo<B> {
    pub(in crate::cluster) until: Timestamp,
    pub(in crate::cluster) before: B,
}

#[derive(Debug, Clone)]
pub(in crate::cluster) enum Before {
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
    pub(in crate::cluster) fn reaches(&self, time: Timestamp) -> bool {
        self.last.is_some_and(|last| last > time)
    }

    /// Records the time of a change, also of one without a state before it (a new pod).
    pub(in crate::cluster) fn touch(&mut self, at: Timestamp) {
        if self.last.is_some_and(|last| last.duration_since(at) > CLOCK_SET_BACK) {
            let crowded_out = self.crowded_out;
            *self = History { crowded_out, ..History::default() };
        }
        self.last = self.last.max(Some(at));
    }

    pub(in crate::cluster) fn claim(&mut self, ip: IpAddr, claim: Claim) {
        self.touch(claim.until);
        self.order.push_back((claim.until, HistoryEntry::Address(ip)));
        self.claims.entry(ip).or_default().push_back(claim);
    }

    pub(in crate::cluster) fn undo(&mut self, namespace: &Str, until: Timestamp, before: Before) {
        self.touch(until);
        self.order.push_back((until, HistoryEntry::Namespace(namespace.clone())));
        self.undo.entry(namespace.clone()).or_default().push_back(Undo { until, before });
    }

    /// Records that the pod was `before` until `until`.
    pub(in crate::cluster) fn undo_pod(&mut self, until: Timestamp, before: Arc<Pod>) {
        self.touch(until);
        let entry = (before.namespace.clone(), before.unique_name());
        self.order.push_back((until, HistoryEntry::Pod(entry.clone())));
        self.pods.entry(entry).or_default().push_back(Undo { until, before });
    }

    /// Removes what is too old or too much.
    pub(in crate::cluster) fn forget(&mut self, now: Timestamp) {
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
    pub(in crate::cluster) fn claims(&self, ip: IpAddr) -> impl DoubleEndedIterator<Item = &Claim> {
        self.claims.get(&ip).into_iter().flatten()
    }

    /// What to undo for a namespace as of `time`, latest first.
    pub(in crate::cluster) fn since(&self, name: &str, time: Timestamp) -> impl Iterator<Item = &Undo<Before>> {
        let kept = self.undo.get(name).into_iter().flat_map(|undo| undo.iter().rev());
        kept.take_while(move |undo| undo.until > time)
    }

    /// What to undo for this very pod as of `time`, latest first.
    pub(in crate::cluster) fn of_pod_since(&self, pod: &Pod, time: Timestamp) -> impl Iterator<Item = &Undo<Arc<Pod>>> {
        // Called for each drop. Most pods have no history, so the key is made only if any pod has some.
        let entry = (!self.pods.is_empty()).then(|| (pod.namespace.clone(), pod.unique_name()));
        let kept = entry.and_then(|entry| self.pods.get(&entry)).into_iter().flat_map(|undo| undo.iter().rev());
        kept.take_while(move |undo| undo.until > time).filter(|undo| undo.before.is_same(pod))
    }

    pub(in crate::cluster) fn len(&self) -> usize {
        self.order.len()
    }

    pub(in crate::cluster) fn crowded_out(&self) -> u64 {
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
