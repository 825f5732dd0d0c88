//! netpol-trace reports, for every packet that a NetworkPolicy drops: which pod, which policies, which rule came closest, and what would allow
//! the packet.
//!
//! [`pipeline`] calls the stages in order. ARCHITECTURE.md has one line for each folder.

/// Writes a line to standard error and ignores errors. The standard library's macro panics when standard error cannot be written
/// (`2>&1 | head`, a full disk), which would change the exit code.
macro_rules! eprintln {
    ($($message:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($message)*);
    }};
}

pub mod agent;
pub mod audit;
mod backoff;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod doctor;
pub mod history;
pub mod http;
pub mod inventory;
pub mod kernel;
mod lock;
mod memory;
pub mod metrics;
pub mod missing;
pub mod model;
pub mod netlink;
pub mod packet;
pub mod pipeline;
pub mod policy;
pub mod record;
pub mod recorded;
pub mod sink;
#[cfg(test)]
#[path = "../../tests/src/skip.rs"]
mod skip;
pub mod storage;
pub mod tail;
pub mod telemetry;
pub mod text;
