//! netpol-trace says, for every packet a NetworkPolicy drops: which pod, which policies, which rule almost let it
//! through, and what would.
//!
//! The data's path is the module list, in order; [`pipeline`] calls the stages. ARCHITECTURE.md has the map.

pub mod cli;
pub mod cluster;
pub mod record;
pub mod text;
pub mod verdict;
