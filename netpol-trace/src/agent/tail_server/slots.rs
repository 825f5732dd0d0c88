//! Slots for readers: a limit in total and a limit per user, so that no user takes all slots.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::lock::IgnorePoison;

/// Readers at once; each has a thread.
const MAX_READERS: usize = 32;
/// Readers of one user at once: developers of a namespace share one account.
pub(super) const MAX_READERS_OF_USER: usize = 8;

/// Numbers of readers by user name.
#[derive(Debug, Default)]
pub(super) struct ReaderSlots(Mutex<HashMap<String, usize>>);

/// Why there is no slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    All,
    Users,
}

/// A reader's slot, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct ReaderSlot {
    slots: Arc<ReaderSlots>,
    user: String,
}

impl ReaderSlots {
    pub fn take(self: &Arc<Self>, user: &str) -> Result<ReaderSlot, NoSlot> {
        let mut taken = self.lock();
        if taken.get(user).is_some_and(|count| *count >= MAX_READERS_OF_USER) {
            return Err(NoSlot::Users);
        }
        if taken.values().sum::<usize>() >= MAX_READERS {
            return Err(NoSlot::All);
        }
        *taken.entry(user.to_owned()).or_default() += 1;
        Ok(ReaderSlot { slots: self.clone(), user: user.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().ignore_poison()
    }
}

impl Drop for ReaderSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_share_and_gives_it_back() {
        let slots = Arc::<ReaderSlots>::default();
        let first: Vec<_> = (0..MAX_READERS_OF_USER).map(|_| slots.take("a").expect("a slot")).collect();
        assert_eq!(slots.take("a").err(), Some(NoSlot::Users));
        let others = ["b", "c", "d"].iter().flat_map(|user| (0..MAX_READERS_OF_USER).map(|_| slots.take(user)));
        let others: Vec<_> = others.map(|slot| slot.expect("a slot")).collect();
        assert_eq!(slots.take("e").err(), Some(NoSlot::All));
        drop((first, others));
        assert!(slots.lock().is_empty());
        assert!(slots.take("e").is_ok());
    }
}
