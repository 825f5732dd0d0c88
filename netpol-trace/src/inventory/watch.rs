//! Keeps the inventory up to date: anew when nftables or a device says that it changed, and every few seconds for
//! what tells nobody (legacy tables, TCX, queues).

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
/// What tells nobody of its changes is looked at this often.
const POLL: Duration = Duration::from_secs(10);
/// After a change others often follow.
const SETTLE: Duration = Duration::from_millis(50);
/// Reading takes at most one part in so many of the time.
const SHARE: u32 = 20;
/// How long a stop may go unnoticed.
const WAIT: Duration = Duration::from_millis(200);

/// The inventory as of now, from a thread of its own.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    current: RwLock<Arc<Inventory>>,
    /// nftables has changed since `current` was read.
    outdated: AtomicBool,
    stop: AtomicBool,
}

impl Watcher {
    /// Reads once, then follows. `linked` names the programs of a device that netlink does not tell.
    pub fn start(linked: impl Fn(&str) -> Vec<String> + Send + 'static) -> Watcher {
        // Listen first: what changes while the rulesets are read must not go unnoticed.
        let listeners = Listeners::open();
        let started = Instant::now();
        let current = RwLock::new(Arc::new(Inventory::read(&linked)));
        let took = started.elapsed();
        let shared = Arc::new(Inner { current, outdated: AtomicBool::new(false), stop: AtomicBool::new(false) });
        let thread = std::thread::Builder::new().name("inventory".into()).spawn({
            let shared = shared.clone();
            move || follow(&shared, listeners, took, linked)
        });
        let thread = thread.inspect_err(|error| tracing::warn!(%error, "the rulesets are read only once")).ok();
        Watcher { shared, thread }
    }

    /// What is there now; `None` while a change that was announced is not yet read.
    pub fn current(&self) -> Option<Arc<Inventory>> {
        if self.shared.outdated.load(Ordering::Acquire) {
            return None;
        }
        Some(self.latest())
    }

    /// What was read last.
    pub fn latest(&self) -> Arc<Inventory> {
        self.shared.current.read().ignore_poison().clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The sockets that hear of changes; one is missing where nftables is not loaded yet, or a right is missing.
struct Listeners {
    nft: Option<Socket>,
    route: Option<Socket>,
}

impl Listeners {
    fn open() -> Listeners {
        let log = |error: &io::Error| tracing::debug!(%error, "no notice of changes: rulesets are polled");
        Listeners {
            // Joining the group would load nf_tables.
            nft: nft_loaded()
                .then(|| netlink::listen(NETLINK_NETFILTER, &[GROUP_NFTABLES]).inspect_err(log).ok())
                .flatten(),
            route: netlink::listen(NETLINK_ROUTE, &[RTNLGRP_LINK, RTNLGRP_TC]).inspect_err(log).ok(),
        }
    }

    /// Waits for either to be readable.
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

fn follow(shared: &Inner, mut listeners: Listeners, mut took: Duration, linked: impl Fn(&str) -> Vec<String>) {
    let mut read_at = Instant::now();
    // The first change that is not read yet.
    let mut changed: Option<Instant> = None;
    while !shared.stop.load(Ordering::Acquire) {
        listeners.wait(if changed.is_some() { SETTLE } else { WAIT });
        let mut heard = listeners.route.as_ref().is_some_and(netlink::drain);
        if listeners.nft.as_ref().is_some_and(netlink::drain) {
            shared.outdated.store(true, Ordering::Release);
            heard = true;
        }
        if listeners.nft.is_none() && nft_loaded() {
            listeners = Listeners::open();
            heard |= listeners.nft.is_some();
        }
        if heard {
            changed = changed.or(Some(Instant::now()));
        }
        let now = Instant::now();
        let rested = now.duration_since(read_at) >= took * SHARE;
        let settled = changed.is_some_and(|at| now.duration_since(at) >= SETTLE);
        if rested && (settled || now.duration_since(read_at) >= POLL) {
            let fresh = Arc::new(Inventory::read(&linked));
            *shared.current.write().ignore_poison() = fresh;
            read_at = Instant::now();
            took = read_at.duration_since(now);
            // What came while it was read may or may not be in it.
            let again = listeners.nft.as_ref().is_some_and(netlink::drain);
            changed = again.then_some(read_at);
            shared.outdated.store(again, Ordering::Release);
        }
    }
}
