//! `--peers=lookup`: who has an address, asked when it first appears in a drop.
//!
//! ```text
//! an end without a name, or with one not heard of lately ─> Lookups::ask ─┬─> a pod known by name: GET it
//!                                                                        └─> else: EndpointSlice, its node's pods, status.podIP
//! ```
//!
//! Pods elsewhere are not watched, so what was looked up goes stale unseen. An answer names a packet only if it was asked for
//! after it: then the pod had the address at both times. One question a [`MOMENT`] answers for all packets before it, and a
//! name that can't be confirmed in time is none.

mod find;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) use find::run;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::super::Index;
use crate::model::Str;
use crate::model::cluster::Pod;

/// How often the owner of one address is confirmed; a drop waits longer for its names.
const MOMENT: SignedDuration = SignedDuration::from_secs(1);
/// How long nobody's address is not asked for again.
const NOBODY: SignedDuration = SignedDuration::from_secs(5);
/// Answers kept that nobody asked for lately.
const UNUSED: SignedDuration = SignedDuration::from_mins(10);
/// Pods elsewhere that are kept at most.
const MAX_ANSWERS: usize = 4096;
/// Addresses that wait to be looked up, and to be confirmed.
const MAX_FINDS: usize = 64;
const MAX_CONFIRMS: usize = 256;

/// What the pipeline has of the lookups. Clones share it.
#[derive(Debug, Clone)]
pub struct Lookups {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    active: AtomicBool,
    node: Option<Str>,
    state: Mutex<State>,
    finds: Sender<IpAddr>,
    confirms: Sender<IpAddr>,
    /// Of pods and nodes, what was not listed yet.
    unheard: AtomicU32,
    asked: AtomicU64,
    unasked: AtomicU64,
}

/// The other end of a [`Lookups`].
#[derive(Debug)]
pub struct LookupQueues {
    finds: Receiver<IpAddr>,
    confirms: Receiver<IpAddr>,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<IpAddr, LookupResult>,
    /// LookupQueues and not yet answered.
    pending: HashSet<IpAddr>,
}

#[derive(Debug, Clone, PartialEq)]
enum LookupResult {
    /// So it was at some time after `at`.
    Pod {
        namespace: Str,
        name: Str,
        uid: Str,
        at: Timestamp,
        used: Timestamp,
    },
    Nobody {
        at: Timestamp,
    },
}

impl Lookups {
    /// Answers nothing until [`run`] begins.
    pub fn new(node: Option<Str>) -> (Lookups, LookupQueues) {
        let (finds, find_asked) = channel(MAX_FINDS);
        let (confirms, confirm_asked) = channel(MAX_CONFIRMS);
        let shared = Inner {
            active: AtomicBool::new(false),
            node,
            state: Mutex::default(),
            finds,
            confirms,
            unheard: AtomicU32::new(2),
            asked: AtomicU64::new(0),
            unasked: AtomicU64::new(0),
        };
        (Lookups { shared: Arc::new(shared) }, LookupQueues { finds: find_asked, confirms: confirm_asked })
    }

    /// Whether pods elsewhere are looked up; otherwise every pod is watched.
    pub fn active(&self) -> bool {
        self.shared.active.load(Ordering::Acquire)
    }

    /// Whether `pod` can be named as the owner of `ip` in a packet of `time`.
    pub fn vouches(&self, pod: &Pod, ip: IpAddr, time: Timestamp) -> bool {
        if !self.active() || pod.node == self.shared.node || pod.template {
            return true;
        }
        let Some(pod_uid) = &pod.uid else { return false };
        match self.lock().answers.get_mut(&ip) {
            Some(LookupResult::Pod { uid, at, used, .. }) if uid == pod_uid => {
                *used = Timestamp::now().max(*used);
                // The pod may have got the address only after the packet.
                let began = pod.created.is_none_or(|created| created <= time);
                began && *at >= time
            }
            _ => false,
        }
    }

    /// Whether an address that nobody is known to have may be a pod's all the same: pods or nodes were not listed yet, or
    /// pods elsewhere are not watched and no node tells which addresses pods have.
    pub fn may_be_a_pods(&self, ip: IpAddr, index: &Index) -> bool {
        if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
            return false;
        }
        self.shared.unheard.load(Ordering::Acquire) > 0
            || (self.active() && !index.knows_pod_networks() && !self.is_nobodys(ip))
    }

    /// Whether it was asked and found lately that no pod has `ip`.
    pub fn is_nobodys(&self, ip: IpAddr) -> bool {
        matches!(self.lock().answers.get(&ip), Some(LookupResult::Nobody { at }) if at.duration_until(Timestamp::now()) <= NOBODY)
    }

    /// Has `ip` looked up, or its known owner confirmed, unless that is under way. What does not fit is counted.
    pub fn ask(&self, ip: IpAddr) {
        if !self.active() || self.is_nobodys(ip) {
            return;
        }
        let mut state = self.lock();
        if !state.pending.insert(ip) {
            return;
        }
        let queue = match state.answers.get(&ip) {
            Some(LookupResult::Pod { .. }) => &self.shared.confirms,
            _ => &self.shared.finds,
        };
        let counter = match queue.try_send(ip) {
            Ok(()) => &self.shared.asked,
            Err(_) => {
                state.pending.remove(&ip);
                &self.shared.unasked
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// For the status: addresses asked for, and those for which there was no room.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.shared.asked.load(Ordering::Relaxed), self.shared.unasked.load(Ordering::Relaxed))
    }

    pub(super) fn begin(&self) {
        self.shared.active.store(true, Ordering::Release);
    }

    /// Pods, or nodes, were listed for the first time.
    pub(super) fn heard(&self) {
        self.shared.unheard.fetch_sub(1, Ordering::AcqRel);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, ip: IpAddr) -> Option<LookupResult> {
        self.lock().answers.get(&ip).cloned()
    }

    /// Keeps an answer; those that make room for it.
    fn answer(&self, ip: IpAddr, answer: Option<LookupResult>) -> Vec<LookupResult> {
        let mut state = self.lock();
        state.pending.remove(&ip);
        let mut gone = Vec::new();
        gone.extend(match answer {
            Some(answer) => state.answers.insert(ip, answer),
            None => state.answers.remove(&ip),
        });
        // What was known of the same pod stays known under its name.
        if let (Some(LookupResult::Pod { uid: new, .. }), Some(LookupResult::Pod { uid: old, .. })) =
            (state.answers.get(&ip), gone.first())
            && new == old
        {
            gone.clear();
        }
        if state.answers.len() > MAX_ANSWERS {
            gone.extend(sweep(&mut state.answers, Timestamp::now()));
        }
        gone
    }

    /// Gives up on an address for now: the next drop asks again.
    fn leave(&self, ip: IpAddr) {
        self.lock().pending.remove(&ip);
    }

    fn sweep(&self) -> Vec<LookupResult> {
        sweep(&mut self.lock().answers, Timestamp::now())
    }
}

/// Takes out what nobody uses, and of too many the half that was used longest ago.
fn sweep(answers: &mut HashMap<IpAddr, LookupResult>, now: Timestamp) -> Vec<LookupResult> {
    let used = |answer: &LookupResult| match answer {
        LookupResult::Pod { used, .. } => *used,
        // Kept only as long as it counts.
        LookupResult::Nobody { at } => *at - UNUSED + NOBODY,
    };
    let mut least = now - UNUSED;
    if answers.len() > MAX_ANSWERS {
        let mut times: Vec<Timestamp> = answers.values().map(used).collect();
        times.sort_unstable();
        least = least.max(times[times.len() / 2]);
    }
    answers.extract_if(|_, answer| used(answer) <= least).map(|(_, answer)| answer).collect()
}

/// How often unused answers are looked for.
const SWEEP: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
