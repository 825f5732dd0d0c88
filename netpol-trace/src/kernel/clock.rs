//! The kernel stamps with CLOCK_MONOTONIC; records carry wall-clock time.

use jiff::Timestamp;

/// The difference between the two clocks, as last measured.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Wall clock minus monotonic, ns.
    offset: i128,
}

impl Clock {
    /// Measures now. The wall clock may be stepped: measure again every second or so.
    pub fn now() -> Clock {
        // Three tries; the tightest bracket has the least scheduling in it.
        let best = (0..3)
            .map(|_| {
                let before = monotonic();
                let wall = Timestamp::now().as_nanosecond();
                let after = monotonic();
                (after - before, wall - (before + after) / 2)
            })
            .min()
            .unwrap_or_default();
        Clock { offset: best.1 }
    }

    /// Wall-clock time of a monotonic stamp.
    pub fn wall(&self, monotonic_ns: u64) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(monotonic_ns) + self.offset).unwrap_or(Timestamp::UNIX_EPOCH)
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
    fn a_stamp_of_now_is_now() {
        let clock = Clock::now();
        let off = clock.wall(monotonic() as u64).duration_since(Timestamp::now()).as_millis_f64().abs();
        assert!(off < 1000.0, "{off} ms");
    }
}
