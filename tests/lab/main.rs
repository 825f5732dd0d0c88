//! Tests on the real kernel, in network namespaces of their own. They need root and are skipped without.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod accounting;
mod aggregation;
mod bad_input;
mod config;
mod demo;
mod files;
mod fingerprints;
mod history;
mod hooks;
mod identities;
mod late_modules;
mod lifecycle;
mod memory;
mod mounts;
mod openers;
mod outputs;
mod packets;
mod privileges;
mod rows;
mod survive_restart;
mod tc;
mod tc_dns;
mod tc_lifecycle;
mod tc_traffic;
mod upgrade;

/// Locks out other callers: tests with thousands of flows, and tests that a full map of flows would disturb. An agent sees all labs' drops.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
