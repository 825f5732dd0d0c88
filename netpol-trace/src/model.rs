//! Plain data that every stage shares: packets, drop sites, causes, cluster objects, verdicts, losses, totals.
//!
//! Types only: no I/O, no clock, and no import from the rest of the project.

pub mod aggregation;
pub mod cause;
pub(crate) mod closed_set;
pub mod cluster;
pub mod direction;
pub mod drop_site;
pub mod drop_taxonomy;
pub mod endpoint;
pub mod loss;
pub mod packet;
pub mod part;
pub mod state;
pub mod text;
pub mod totals;
pub mod unanswered;
pub mod verdict;

pub use aggregation::*;
pub use cause::*;
pub use direction::*;
pub use drop_site::*;
pub use endpoint::*;
pub use loss::*;
pub use part::Part;
pub use state::*;
pub use text::{Str, Text};
pub use totals::*;
pub use unanswered::*;
pub use verdict::*;
