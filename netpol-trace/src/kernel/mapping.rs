//! Maps the values of an array map into the agent's memory. The programs see stores at once, and a pinned map keeps them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::maps::MapData;

/// The values of an array map with BPF_F_MMAPABLE. Dropping it unmaps them.
#[derive(Debug)]
pub(super) struct Mapping<T> {
    first: NonNull<T>,
    count: usize,
}

// SAFETY: the values are only reached through atomics.
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

impl<T> Mapping<T> {
    /// The map's first `count` values; a value's size must be a multiple of 8 bytes.
    pub fn new(map: &MapData, count: usize) -> io::Result<Mapping<T>> {
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.fd().as_fd().as_raw_fd());
        // SAFETY: a new shared mapping; the descriptor is open during the call.
        let first =
            unsafe { libc::mmap(std::ptr::null_mut(), length::<T>(count), protection, libc::MAP_SHARED, fd, 0) };
        if first == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(first.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Mapping { first, count })
    }

    /// The words of the value at `at`; no words beyond the last value.
    pub fn value(&self, at: usize) -> impl Iterator<Item = &AtomicU64> {
        let each = size_of::<T>() / size_of::<u64>();
        let words = if at < self.count { at * each..(at + 1) * each } else { 0..0 };
        // SAFETY: within the mapping and aligned to 8 bytes; the agent accesses it only through atomics.
        words.map(|word| unsafe { AtomicU64::from_ptr(self.first.as_ptr().cast::<u64>().add(word)) })
    }

    /// One word of the first value.
    pub fn word(&self, of: impl FnOnce(*mut T) -> *mut u64) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(of(self.first.as_ptr())) }
    }

    /// The same word of each value.
    pub fn words(&self, of: impl Fn(*mut T) -> *mut u64) -> impl Iterator<Item = &AtomicU64> {
        // SAFETY: as above.
        (0..self.count).map(move |at| unsafe { AtomicU64::from_ptr(of(self.first.as_ptr().add(at))) })
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; references into the mapping have ended.
        unsafe { libc::munmap(self.first.as_ptr().cast(), length::<T>(self.count)) };
    }
}

/// The size in bytes of the pages that hold `count` values.
fn length<T>(count: usize) -> usize {
    // SAFETY: reads a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    (count * size_of::<T>()).next_multiple_of(page)
}
