//! The ring buffer's reading end.

use std::os::fd::AsRawFd;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use netpol_trace_common::DropEvent;

/// After the kernel's wake-up the reader lets a burst gather: while records wait unread the kernel sends no further
/// wake-up, which is what costs (kernel-side about 4 µs each).
const GATHER: Duration = Duration::from_millis(1);

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

    /// Waits until there may be something to read, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: one valid pollfd. EINTR and errors end the wait early, which is harmless.
        let ready = unsafe { libc::poll(&mut poll, 1, timeout) };
        if ready > 0 {
            std::thread::sleep(GATHER);
        }
    }
}
