//! Tests against a real API server with real enforcers. They need root and the programs that `cargo xtask setup` builds
//! with Go; without them they say so and pass.

mod accounts;
mod control_plane;
mod enforcers;
mod events;
mod metrics;
mod source;
mod tail;
mod truth;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each change of any object makes an enforcer write its rules anew, with counters from zero, and the truth table's
/// namespaces have fixed names: tests with enforcers take turns.
fn exclusive() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
