//! Locks of a thread that panicked: its data is whole between any two statements, so the others go on with it.

use std::sync::{LockResult, PoisonError};

pub trait IgnorePoison {
    type Guard;

    /// Returns the guard, also if a thread panicked while it held the lock.
    fn ignore_poison(self) -> Self::Guard;
}

impl<G> IgnorePoison for LockResult<G> {
    type Guard = G;

    fn ignore_poison(self) -> G {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}
