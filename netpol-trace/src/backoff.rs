//! Pauses between attempts: doubled each time up to a limit, with jitter.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new(Duration::from_secs(1), Duration::from_secs(30))
    }
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { next: first, longest }
    }

    /// Returns the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        jittered(pause)
    }
}

/// Returns 50 % to 150 % of `pause`, so that agents that lost the same server do not all reconnect at once.
fn jittered(pause: Duration) -> Duration {
    // Without a random number the pause stays as it is.
    let random = getrandom::u32().unwrap_or(512);
    pause.mul_f64(0.5 + f64::from(random % 1024) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for seconds in [1.0, 2.0, 4.0, 5.0, 5.0] {
            let pause = backoff.pause().as_secs_f64();
            assert!((seconds * 0.5..seconds * 1.5).contains(&pause), "{seconds}: {pause}");
        }
    }
}
