//! Settings of the kernel's side.

use std::path::PathBuf;

/// How the drop hook is set up.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Record drops of every reason but noise, and not only those that a policy may have made.
    pub all_drops: bool,
    /// Bytes of the ring buffer, a power of two.
    pub ring_bytes: u32,
    /// Do not try the BTF tracepoint: for tests of the raw tracepoint.
    pub raw_tracepoint: bool,
    /// Count repeated packets in the kernel instead of sending each.
    pub aggregate: bool,
    /// Pin the maps and the hook, so that counts, unread records and the hook outlive the agent.
    pub survive_restart: bool,
    /// The folder of pins. Empty: nothing is pinned, and the agent does not look for an earlier agent's pins.
    pub pin_folder: PathBuf,
}

impl Default for KernelOptions {
    fn default() -> Self {
        KernelOptions {
            all_drops: false,
            ring_bytes: 2 << 20,
            raw_tracepoint: false,
            aggregate: true,
            survive_restart: false,
            pin_folder: PathBuf::new(),
        }
    }
}
