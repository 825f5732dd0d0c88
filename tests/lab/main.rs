//! Tests against the real kernel, in namespaces of their own. They need root; without it they say so and pass.

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
mod late_modules;
mod lifecycle;
mod memory;
mod mounts;
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

/// One at a time: tests with thousands of flows, and those that a full map of flows would disturb. An agent sees all labs' drops.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
