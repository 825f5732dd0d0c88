//! What one run leaves to the next in pinned maps (`--pin`): the counters, the ring and the folds are the kernel's own; here is
//! how far the agent has come with them. Plain stores into a page that the kernel keeps: what was stored survives the process,
//! however that ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use netpol_trace_common::fold::Carry as Raw;

/// The page, mapped for as long as the agent runs.
#[derive(Debug)]
pub struct Carry {
    page: std::ptr::NonNull<Raw>,
    length: usize,
}

// SAFETY: the page is only reached through atomics.
unsafe impl Send for Carry {}
// SAFETY: as above.
unsafe impl Sync for Carry {}

impl Carry {
    pub(super) fn new(map: &MapData) -> io::Result<Carry> {
        let length = page_size::<Raw>();
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.fd().as_fd().as_raw_fd());
        // SAFETY: a new shared mapping of a map made for it (BPF_F_MMAPABLE); the descriptor lives through the call.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = std::ptr::NonNull::new(page.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Carry { page, length })
    }

    fn cell(&self, of: impl FnOnce(*mut Raw) -> *mut u64) -> &AtomicU64 {
        // SAFETY: a field of the mapped page, aligned to 8 octets, that everybody reaches through atomics.
        unsafe { AtomicU64::from_ptr(of(self.page.as_ptr())) }
    }

    /// Packets of events that were read from the ring.
    pub fn emitted(&self) -> &AtomicU64 {
        // SAFETY: only the address is taken.
        self.cell(|raw| unsafe { &raw mut (*raw).emitted })
    }

    /// Packets of counts that were taken out of the maps.
    pub fn folded(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.cell(|raw| unsafe { &raw mut (*raw).folded })
    }

    /// Of the kernel's losses, what is declared.
    pub fn lost(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.cell(|raw| unsafe { &raw mut (*raw).lost })
    }

    /// Packets in lines that were written.
    pub fn written(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.cell(|raw| unsafe { &raw mut (*raw).written })
    }

    /// Packets that get no line, and those whose loss is declared.
    pub fn left_out(&self) -> &AtomicU64 {
        // SAFETY: as above.
        self.cell(|raw| unsafe { &raw mut (*raw).left_out })
    }

    /// Notes that nothing is open of what was taken out of the kernel.
    pub fn settle(&self) {
        let taken = self.emitted().load(Ordering::Acquire) + self.folded().load(Ordering::Acquire);
        self.left_out().store(taken.saturating_sub(self.written().load(Ordering::Acquire)), Ordering::Release);
    }

    /// Takes over from the run before: packets that it had taken out of the kernel and that ended with it. They are this run's to
    /// declare, and done with.
    pub(super) fn take_over(&self) -> u64 {
        let taken = self.emitted().load(Ordering::Acquire) + self.folded().load(Ordering::Acquire);
        let done = self.written().swap(taken, Ordering::AcqRel) + self.left_out().swap(0, Ordering::AcqRel);
        taken.saturating_sub(done)
    }
}

impl Drop for Carry {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.length) };
    }
}

/// Octets of the pages that hold a `T`.
fn page_size<T>() -> usize {
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    size_of::<T>().next_multiple_of(page)
}
