//! Calls `malloc_trim`: start-up, LISTs and re-read manifests leave tens of MiB of free heap in glibc.

use std::time::Duration;

/// The interval of the calls. It bounds how long the heap of a LIST after a broken watch, or of changed manifests, stays resident: 12.3 MiB for
/// 3,000 pods in manifests.
const INTERVAL: Duration = Duration::from_secs(60);

/// Trims the heap when `started` is over and then at every interval, until dropped.
pub async fn keep_small(started: impl Future<Output = ()>) {
    started.await;
    loop {
        // On a thread of its own: it walks the heap, for which the pipeline's threads wait too.
        let _ = tokio::task::spawn_blocking(trim).await;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Returns free heap to the kernel. glibc itself returns only the top of its heap, and reading the kernel's types and symbols takes some 20 MiB.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: the allocator's own function, which may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators return free memory by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
