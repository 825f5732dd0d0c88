//! Tests against the real kernel, in namespaces of their own. They need root; without it they say so and pass.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod bad_input;
mod books;
mod config;
mod demo;
mod files;
mod fingerprints;
mod folds;
mod history;
mod late_modules;
mod lifecycle;
mod memory;
mod mounts;
mod openers;
mod outputs;
mod packets;
mod places;
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
