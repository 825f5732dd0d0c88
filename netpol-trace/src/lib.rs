//! netpol-trace says, for every packet a NetworkPolicy drops: which pod, which policies, which rule almost let it
//! through, and what would.
//!
//! The data's path is the module list, in order; [`pipeline`] calls the stages. ARCHITECTURE.md has the map.

/// The standard library's panics when nobody reads standard error (`2>&1 | head`, a full disk): what was shown is no less true then,
/// and neither is the exit code.
macro_rules! eprintln {
    ($($message:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($message)*);
    }};
}

pub mod agent;
pub mod audit;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod doctor;
pub mod history;
pub mod http;
pub mod inventory;
pub mod kernel;
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
pub mod storage;
pub mod tail;
pub mod telemetry;
pub mod text;
