//! Converts CLOCK_MONOTONIC, which the programs use, to wall-clock time for records.

use jiff::Timestamp;

/// The measured difference between the two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Wall clock minus monotonic clock: whole seconds, and nanoseconds from 0 on. Two fields, because a 128-bit division would cost more than
    /// the rest of the conversion.
    seconds: i64,
    nanoseconds: i64,
}

const SECOND: i64 = 1_000_000_000;

impl Clock {
    /// Measures the difference. Measure again every second or so, because the wall clock may be stepped.
    pub fn now() -> Clock {
        // Of three measurements, the one with the least delay is the most precise.
        let best = (0..3)
            .map(|_| {
                let before = monotonic();
                let wall = Timestamp::now().as_nanosecond();
                let after = monotonic();
                (after - before, wall - (before + after) / 2)
            })
            .min()
            .unwrap_or_default();
        let second = i128::from(SECOND);
        Clock {
            seconds: i64::try_from(best.1.div_euclid(second)).unwrap_or_default(),
            nanoseconds: i64::try_from(best.1.rem_euclid(second)).unwrap_or_default(),
        }
    }

    /// Wall-clock time of a monotonic stamp.
    pub fn wall(&self, monotonic_ns: u64) -> Timestamp {
        // Both parts are far from the limits of an i64.
        let (seconds, nanoseconds) = ((monotonic_ns / SECOND as u64) as i64, (monotonic_ns % SECOND as u64) as i64);
        let nanoseconds = nanoseconds + self.nanoseconds;
        let seconds = seconds.saturating_add(self.seconds).saturating_add(nanoseconds / SECOND);
        Timestamp::new(seconds, (nanoseconds % SECOND) as i32).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// CLOCK_MONOTONIC now, ns.
pub fn monotonic_ns() -> u64 {
    u64::try_from(monotonic()).unwrap_or(0)
}

fn monotonic() -> i128 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_overflow_into_seconds() {
        let clock = Clock { seconds: 1_700_000_000, nanoseconds: 999_999_999 };
        let wall = |stamp| clock.wall(stamp).as_nanosecond();
        let offset = 1_700_000_000_999_999_999;
        for stamp in [0, 1, 2, 999_999_999, 1_000_000_000, 1_000_000_001, 86_400_123_456_789] {
            assert_eq!(wall(stamp), offset + i128::from(stamp));
        }
        let before_the_epoch = Clock { seconds: -2, nanoseconds: 1 };
        assert_eq!(before_the_epoch.wall(1_500_000_000).as_nanosecond(), -499_999_999);
        assert_eq!(clock.wall(u64::MAX).as_nanosecond(), offset + i128::from(u64::MAX));
    }

    #[test]
    fn a_stamp_of_now_is_now() {
        let clock = Clock::now();
        let off = clock.wall(monotonic() as u64).duration_since(Timestamp::now()).as_millis_f64().abs();
        assert!(off < 1000.0, "{off} ms");
    }
}
