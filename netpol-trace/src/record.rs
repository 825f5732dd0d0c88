//! The record, `schema: "netpol-trace/v1"`: one JSON object a line. Pure data: what it says was decided upstream.

pub mod build;
pub mod change;
pub mod encode;
pub mod restrict;
pub mod schema;
pub mod state;

pub use change::*;
pub use schema::*;
pub use state::*;
