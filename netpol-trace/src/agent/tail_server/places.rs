//! Places for readers: a limit in total and a limit per user, so that no user takes all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::lock::IgnorePoison;

/// Each reader has a thread while it is there.
const PLACES: usize = 32;
/// Developers of a namespace share one account.
pub(super) const PLACES_OF_USER: usize = 8;

/// The readers that are there, by user name.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<String, usize>>);

/// Why there is no place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Users,
}

/// A reader's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    user: String,
}

impl Places {
    pub fn take(self: &Arc<Self>, user: &str) -> Result<Place, Full> {
        let mut taken = self.lock();
        if taken.get(user).is_some_and(|count| *count >= PLACES_OF_USER) {
            return Err(Full::Users);
        }
        if taken.values().sum::<usize>() >= PLACES {
            return Err(Full::All);
        }
        *taken.entry(user.to_owned()).or_default() += 1;
        Ok(Place { places: self.clone(), user: user.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().ignore_poison()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
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
        let places = Arc::<Places>::default();
        let first: Vec<_> = (0..PLACES_OF_USER).map(|_| places.take("a").expect("a place")).collect();
        assert_eq!(places.take("a").err(), Some(Full::Users));
        let others = ["b", "c", "d"].iter().flat_map(|user| (0..PLACES_OF_USER).map(|_| places.take(user)));
        let others: Vec<_> = others.map(|place| place.expect("a place")).collect();
        assert_eq!(places.take("e").err(), Some(Full::All));
        drop((first, others));
        assert!(places.lock().is_empty());
        assert!(places.take("e").is_ok());
    }
}
