//! Limits the rate of requests to the API server.

use std::sync::Mutex;
use std::time::Duration;

use crate::lock::IgnorePoison;

use tokio::time::Instant;

/// A rate with a burst. Each request reserves its place in time and waits for it.
#[derive(Debug)]
pub(in crate::cluster) struct RequestBudget {
    interval: Duration,
    burst: u32,
    /// The time at which the reserved requests are done, at the rate alone.
    used_up: Mutex<Option<Instant>>,
}

impl RequestBudget {
    pub fn new(interval: Duration, burst: u32) -> RequestBudget {
        RequestBudget { interval, burst, used_up: Mutex::new(None) }
    }

    /// Waits until a request is allowed. Returns `false` at once if the wait would be longer than `most`.
    pub async fn take(&self, most: Duration) -> bool {
        match self.reserve(Instant::now(), most) {
            Some(wait) => {
                tokio::time::sleep(wait).await;
                true
            }
            None => false,
        }
    }

    fn reserve(&self, now: Instant, most: Duration) -> Option<Duration> {
        let mut used_up = self.used_up.lock().ignore_poison();
        let after = used_up.filter(|time| *time > now).unwrap_or(now) + self.interval;
        let wait = after.saturating_duration_since(now + self.interval * self.burst);
        (wait <= most).then(|| {
            *used_up = Some(after);
            wait
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let budget = RequestBudget::new(Duration::from_secs(1), 10);
        let start = Instant::now();
        let waits: Vec<_> = (0..13).map(|_| budget.reserve(start, Duration::from_secs(2))).collect();
        assert!(waits[..10].iter().all(|wait| *wait == Some(Duration::ZERO)), "{waits:?}");
        assert_eq!(waits[10..], [Some(Duration::from_secs(1)), Some(Duration::from_secs(2)), None]);
        // A refused request uses nothing of the budget.
        let later = start + Duration::from_secs(3);
        assert_eq!(budget.reserve(later, Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(budget.reserve(later, Duration::ZERO), None);
        let much_later = start + Duration::from_secs(100);
        assert!((0..10).all(|_| budget.reserve(much_later, Duration::ZERO).is_some()));
        assert_eq!(budget.reserve(much_later, Duration::ZERO), None);
    }
}
