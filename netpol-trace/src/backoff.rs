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

    /// Returns the pause before the next attempt, random in its upper half: agents that lost the same server do not all retry at once.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause.mul_f64(0.5 + f64::from(random_below(1024)) / 2048.0)
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }
}

/// Returns a random number below `bound`; 0 if the kernel gives none.
pub fn random_below(bound: u32) -> u32 {
    getrandom::u32().unwrap_or(0) % bound.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for seconds in [1.0, 2.0, 4.0, 5.0, 5.0] {
            let pause = backoff.pause().as_secs_f64();
            assert!((seconds * 0.5..=seconds).contains(&pause), "{seconds}: {pause}");
        }
    }
}
