//! Keeps the inventory up to date: reads it again when nftables or a device sends a notification, and every few seconds because legacy
//! tables, TCX and queues send none.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::{Inventory, nft_loaded};
use crate::lock::IgnorePoison;
use crate::netlink;
use crate::netlink::route::{RTNLGRP_LINK, RTNLGRP_TC};

/// `NFNLGRP_NFTABLES`.
const GROUP_NFTABLES: u32 = 7;
/// Period of reading what sends no notification.
const POLL: Duration = Duration::from_secs(10);
/// Wait after a notification: more changes often follow.
const QUIET_TIME: Duration = Duration::from_millis(50);
/// The thread reads for at most 1/20 of the time.
const SHARE: u32 = 20;
/// Wait for notifications. The thread notices a stop this late.
const WAIT: Duration = Duration::from_millis(200);

/// The current inventory, which a thread keeps up to date.
#[derive(Debug)]
pub struct InventoryWatcher {
    shared: Arc<WatcherState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct WatcherState {
    current: RwLock<Arc<Inventory>>,
    /// nftables has changed since `current` was read.
    outdated: AtomicBool,
    stop: AtomicBool,
}

impl InventoryWatcher {
    /// Reads the inventory and starts the thread. `linked` returns the names of a device's programs that netlink does not list.
    pub fn start(linked: impl Fn(&str) -> Vec<String> + Send + 'static) -> InventoryWatcher {
        // Subscribes before it reads, so that no change while the rulesets are read goes unnoticed.
        let listeners = RulesetListeners::open();
        let started = Instant::now();
        let current = RwLock::new(Arc::new(Inventory::read(&linked)));
        let took = started.elapsed();
        let shared = Arc::new(WatcherState { current, outdated: AtomicBool::new(false), stop: AtomicBool::new(false) });
        let thread = std::thread::Builder::new().name("inventory".into()).spawn({
            let shared = shared.clone();
            move || follow(&shared, listeners, took, linked)
        });
        let thread = thread.inspect_err(|error| tracing::warn!(%error, "the rulesets are read only once")).ok();
        InventoryWatcher { shared, thread }
    }

    /// Returns the inventory; `None` while it lacks a change that nftables has reported.
    pub fn current(&self) -> Option<Arc<Inventory>> {
        if self.shared.outdated.load(Ordering::Acquire) {
            return None;
        }
        Some(self.latest())
    }

    /// Returns the inventory as it was last read.
    pub fn latest(&self) -> Arc<Inventory> {
        self.shared.current.read().ignore_poison().clone()
    }
}

impl Drop for InventoryWatcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The sockets for notifications. One is `None` while nftables is not loaded or without the permission.
struct RulesetListeners {
    nft: Option<Socket>,
    route: Option<Socket>,
}

impl RulesetListeners {
    fn open() -> RulesetListeners {
        let log = |error: &io::Error| tracing::debug!(%error, "no notifications of changes: rulesets are polled");
        RulesetListeners {
            // To join the group would load nf_tables.
            nft: nft_loaded()
                .then(|| netlink::listen(NETLINK_NETFILTER, &[GROUP_NFTABLES]).inspect_err(log).ok())
                .flatten(),
            route: netlink::listen(NETLINK_ROUTE, &[RTNLGRP_LINK, RTNLGRP_TC]).inspect_err(log).ok(),
        }
    }

    /// Waits until one of the sockets is readable.
    fn wait(&self, at_most: Duration) {
        let mut fds: Vec<libc::pollfd> = [&self.nft, &self.route]
            .into_iter()
            .flatten()
            .map(|socket| libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: `fds` is an array of `fds.len()` entries whose descriptors live as long as `self`.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, at_most.as_millis() as i32) };
    }
}

fn follow(
    shared: &WatcherState,
    mut listeners: RulesetListeners,
    mut took: Duration,
    linked: impl Fn(&str) -> Vec<String>,
) {
    let mut read_at = Instant::now();
    // Time of the first change that has not been read.
    let mut changed: Option<Instant> = None;
    while !shared.stop.load(Ordering::Acquire) {
        listeners.wait(if changed.is_some() { QUIET_TIME } else { WAIT });
        let mut notified = listeners.route.as_ref().is_some_and(netlink::drain);
        if listeners.nft.as_ref().is_some_and(netlink::drain) {
            shared.outdated.store(true, Ordering::Release);
            notified = true;
        }
        if listeners.nft.is_none() && nft_loaded() {
            listeners = RulesetListeners::open();
            notified |= listeners.nft.is_some();
        }
        if notified {
            changed = changed.or(Some(Instant::now()));
        }
        let now = Instant::now();
        let rested = now.duration_since(read_at) >= took * SHARE;
        let quiet = changed.is_some_and(|at| now.duration_since(at) >= QUIET_TIME);
        if rested && (quiet || now.duration_since(read_at) >= POLL) {
            let fresh = Arc::new(Inventory::read(&linked));
            *shared.current.write().ignore_poison() = fresh;
            read_at = Instant::now();
            took = read_at.duration_since(now);
            // A change that came during the reading may be missing in it.
            let again = listeners.nft.as_ref().is_some_and(netlink::drain);
            changed = again.then_some(read_at);
            shared.outdated.store(again, Ordering::Release);
        }
    }
}
