//! Gives memory back to the node: what the start and long lists needed for a moment is not needed again.

use std::time::Duration;

/// How often. Lists are read again after a break only, and at rest there is little to look at.
const EVERY: Duration = Duration::from_secs(60);

/// Looks after it until dropped, first when `begun` is over.
pub async fn keep_small(begun: impl Future<Output = ()>) {
    begun.await;
    loop {
        // Walks the heap, which the pipeline's threads share: not in the way of the watches.
        let _ = tokio::task::spawn_blocking(trim).await;
        tokio::time::sleep(EVERY).await;
    }
}

/// The kernel's types and symbols take some 20 MiB while they are read. glibc keeps what is freed below the top of its heap.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: the allocator's own function, which may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
