//! Tests on a real API server with real enforcers. They need root and the programs that `cargo xtask setup` builds with Go, and are
//! skipped without.

mod accounts;
mod control_plane;
mod enforcers;
mod events;
mod metrics;
mod source;
mod tail;
mod truth;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks out other tests with enforcers: each change of an object makes an enforcer rewrite its rules and reset their counters, and the
/// truth table's namespaces have fixed names.
fn exclusive() -> MutexGuard<'static, ()> {
    static EXCLUSIVE: Mutex<()> = Mutex::new(());
    EXCLUSIVE.lock().unwrap_or_else(PoisonError::into_inner)
}
