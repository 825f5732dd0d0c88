//! The ring buffer's reading end.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use netpol_trace_common::DropEvent;

/// After the kernel's wake-up the reader lets a burst gather: while records wait unread the kernel sends no further
/// wake-up, which is what costs (kernel-side about 4 µs each).
const GATHER: Duration = Duration::from_millis(1);

/// Octets that one record takes in the ring: rounded up, behind a header.
pub const ENTRY: u64 = size_of::<DropEvent>().next_multiple_of(8) as u64 + 8;

/// Records of the programs, in order of each CPU's reservation.
pub struct Ring(RingBuf<MapData>);

impl Ring {
    pub(super) fn new(ring: RingBuf<MapData>) -> Ring {
        Ring(ring)
    }

    /// The next record, when there is one.
    pub fn pop(&mut self) -> Option<DropEvent> {
        loop {
            let item = self.0.next()?;
            if item.len() >= size_of::<DropEvent>() {
                // SAFETY: the programs submit only whole DropEvents, plain words for which every bit pattern is valid; the
                // length was checked. Ring entries are 8-octet aligned, yet an unaligned read costs nothing here.
                return Some(unsafe { item.as_ptr().cast::<DropEvent>().read_unaligned() });
            }
        }
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until one of the rings may have something to read, at most `timeout`.
pub fn wait(rings: &[RawFd], timeout: Duration) {
    let mut polls: Vec<_> = rings.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: so many valid pollfds. EINTR and errors end the wait early, which is harmless.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout) };
    if ready > 0 {
        std::thread::sleep(GATHER);
    }
}
