//! Reads records from the ring buffer.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use netpol_trace_common::DropEvent;

/// After a wake-up the reader waits for more records: while records are unread the kernel sends no further wake-ups, which cost about 4 µs
/// each on the kernel's side.
const GATHER: Duration = Duration::from_millis(1);

/// Bytes that one record takes in the ring, with its header.
pub const ENTRY: u64 = size_of::<DropEvent>().next_multiple_of(8) as u64 + 8;

/// Records of the programs, in the order of their reservation.
pub struct DropRing(RingBuf<MapData>);

impl DropRing {
    pub(super) fn new(ring: RingBuf<MapData>) -> DropRing {
        DropRing(ring)
    }

    /// The next record, if there is one.
    pub fn pop(&mut self) -> Option<DropEvent> {
        loop {
            let item = self.0.next()?;
            if item.len() >= size_of::<DropEvent>() {
                // SAFETY: the programs submit only whole DropEvents, plain words for which every bit pattern is valid; the
                // length was checked. DropRing entries are aligned to 8 bytes, yet an unaligned read costs nothing here.
                return Some(unsafe { item.as_ptr().cast::<DropEvent>().read_unaligned() });
            }
        }
    }
}

impl AsRawFd for DropRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until one of the rings may have something to read, at most `timeout`.
pub fn wait(rings: &[RawFd], timeout: Duration) {
    let mut polls: Vec<_> = rings.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: the number of valid pollfds is given. EINTR and errors end the wait early, which is harmless.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout) };
    if ready > 0 {
        std::thread::sleep(GATHER);
    }
}
