//! `--peers=lookup`: finds the pod of an address when the address first appears in a drop.
//!
//! ```text
//! an endpoint without identity, or with one not confirmed ─> Lookups::request ─┬─> owner known: GET the pod
//!                                                                             └─> else: EndpointSlice, node's pods, status.podIP
//! ```
//!
//! Pods on other nodes are not watched, so a result can become wrong unnoticed. A result names a packet's endpoint only if its
//! request was made after the packet: the pod then had the address before and after. One GET in each
//! [`CONFIRMATION_INTERVAL`] confirms the owner for all packets before it. An owner that is not confirmed in time is not named.

mod find;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub(super) use find::run;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::super::Index;
use crate::lock::IgnorePoison;
use crate::model::Str;
use crate::model::cluster::Pod;

/// How often the owner of one address is confirmed. A drop waits longer than this for its endpoints' identities.
const CONFIRMATION_INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// How long an address without an owner is not looked up again.
const NO_OWNER_KEPT: SignedDuration = SignedDuration::from_secs(5);
/// How long an unused result is kept.
const UNUSED: SignedDuration = SignedDuration::from_mins(10);
/// Results that are kept at most.
const MAX_RESULTS: usize = 4096;
/// Queue lengths: addresses to look up, and owners to confirm.
const MAX_FINDS: usize = 64;
const MAX_CONFIRMS: usize = 256;

/// The pipeline's side of the look-ups: requests and results. Clones share them.
#[derive(Debug, Clone)]
pub struct Lookups {
    shared: Arc<SharedLookups>,
}

#[derive(Debug)]
struct SharedLookups {
    active: AtomicBool,
    node: Option<Str>,
    state: Mutex<LookupState>,
    finds: Sender<IpAddr>,
    confirms: Sender<IpAddr>,
    /// How many of the two lists, pods and nodes, are not complete yet.
    unlisted: AtomicU32,
    requested: AtomicU64,
    refused: AtomicU64,
}

/// The queues of a [`Lookups`], for the task that sends the requests.
#[derive(Debug)]
pub struct LookupQueues {
    finds: Receiver<IpAddr>,
    confirms: Receiver<IpAddr>,
}

#[derive(Debug, Default)]
struct LookupState {
    results: HashMap<IpAddr, LookupResult>,
    /// Requested, without result yet.
    pending: HashSet<IpAddr>,
}

#[derive(Debug, Clone, PartialEq)]
enum LookupResult {
    /// The pod had the address at some time after `at`.
    Pod {
        namespace: Str,
        name: Str,
        uid: Str,
        at: Timestamp,
        used: Timestamp,
    },
    NoOwner {
        at: Timestamp,
    },
}

impl Lookups {
    /// Inactive until [`run`] begins.
    pub fn new(node: Option<Str>) -> (Lookups, LookupQueues) {
        let (finds, find_queue) = channel(MAX_FINDS);
        let (confirms, confirm_queue) = channel(MAX_CONFIRMS);
        let shared = SharedLookups {
            active: AtomicBool::new(false),
            node,
            state: Mutex::default(),
            finds,
            confirms,
            unlisted: AtomicU32::new(2),
            requested: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        (Lookups { shared: Arc::new(shared) }, LookupQueues { finds: find_queue, confirms: confirm_queue })
    }

    /// Whether pods on other nodes are looked up. Otherwise every pod is watched.
    pub fn active(&self) -> bool {
        self.shared.active.load(Ordering::Acquire)
    }

    /// Whether `pod` is confirmed as the owner of `ip` at `time`.
    pub fn confirms(&self, pod: &Pod, ip: IpAddr, time: Timestamp) -> bool {
        if !self.active() || pod.node == self.shared.node || pod.template {
            return true;
        }
        let Some(pod_uid) = &pod.uid else { return false };
        match self.lock().results.get_mut(&ip) {
            Some(LookupResult::Pod { uid, at, used, .. }) if uid == pod_uid => {
                *used = Timestamp::now().max(*used);
                // The pod may have got the address only after the packet.
                let began = pod.created.is_none_or(|created| created <= time);
                began && *at >= time
            }
            _ => false,
        }
    }

    /// Whether an address without a known owner may be a pod's: the pods or nodes are not listed yet, or pods on other nodes
    /// are not watched and no node has a pod CIDR.
    pub fn may_be_pod_address(&self, ip: IpAddr, index: &Index) -> bool {
        if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
            return false;
        }
        self.shared.unlisted.load(Ordering::Acquire) > 0
            || (self.active() && !index.knows_pod_networks() && !self.has_no_owner(ip))
    }

    /// Whether a recent look-up found no pod with `ip`.
    pub fn has_no_owner(&self, ip: IpAddr) -> bool {
        matches!(self.lock().results.get(&ip), Some(LookupResult::NoOwner { at }) if at.duration_until(Timestamp::now()) <= NO_OWNER_KEPT)
    }

    /// Queues a look-up of `ip`, or the confirmation of its known owner, unless one is pending. A full queue is counted.
    pub fn request(&self, ip: IpAddr) {
        if !self.active() || self.has_no_owner(ip) {
            return;
        }
        let mut state = self.lock();
        if !state.pending.insert(ip) {
            return;
        }
        let queue = match state.results.get(&ip) {
            Some(LookupResult::Pod { .. }) => &self.shared.confirms,
            _ => &self.shared.finds,
        };
        let counter = match queue.try_send(ip) {
            Ok(()) => &self.shared.requested,
            Err(_) => {
                state.pending.remove(&ip);
                &self.shared.refused
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// For the status: requests, and requests that found the queue full.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.shared.requested.load(Ordering::Relaxed), self.shared.refused.load(Ordering::Relaxed))
    }

    pub(super) fn begin(&self) {
        self.shared.active.store(true, Ordering::Release);
    }

    /// Records that the first list of pods, or of nodes, is complete.
    pub(super) fn list_completed(&self) {
        self.shared.unlisted.fetch_sub(1, Ordering::AcqRel);
    }

    fn lock(&self) -> MutexGuard<'_, LookupState> {
        self.shared.state.lock().ignore_poison()
    }

    fn result(&self, ip: IpAddr) -> Option<LookupResult> {
        self.lock().results.get(&ip).cloned()
    }

    /// Keeps a result, and returns the results that it replaces.
    fn keep(&self, ip: IpAddr, result: Option<LookupResult>) -> Vec<LookupResult> {
        let mut state = self.lock();
        state.pending.remove(&ip);
        let mut gone = Vec::new();
        gone.extend(match result {
            Some(result) => state.results.insert(ip, result),
            None => state.results.remove(&ip),
        });
        // The same pod stays in the index.
        if let (Some(LookupResult::Pod { uid: new, .. }), Some(LookupResult::Pod { uid: old, .. })) =
            (state.results.get(&ip), gone.first())
            && new == old
        {
            gone.clear();
        }
        if state.results.len() > MAX_RESULTS {
            gone.extend(sweep(&mut state.results, Timestamp::now()));
        }
        gone
    }

    /// Ends the request without a result: the next drop requests again.
    fn give_up(&self, ip: IpAddr) {
        self.lock().pending.remove(&ip);
    }

    fn sweep(&self) -> Vec<LookupResult> {
        sweep(&mut self.lock().results, Timestamp::now())
    }
}

/// Removes unused results and, of too many, the half that was used longest ago.
fn sweep(results: &mut HashMap<IpAddr, LookupResult>, now: Timestamp) -> Vec<LookupResult> {
    let used = |result: &LookupResult| match result {
        LookupResult::Pod { used, .. } => *used,
        // Removed as soon as `has_no_owner` ignores it.
        LookupResult::NoOwner { at } => *at - UNUSED + NO_OWNER_KEPT,
    };
    let mut least = now - UNUSED;
    if results.len() > MAX_RESULTS {
        let mut times: Vec<Timestamp> = results.values().map(used).collect();
        times.sort_unstable();
        least = least.max(times[times.len() / 2]);
    }
    results.extract_if(|_, result| used(result) <= least).map(|(_, result)| result).collect()
}

/// How often unused results are removed.
const SWEEP: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
