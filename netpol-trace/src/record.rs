//! The record, `schema: "netpol-trace/v1"`: one JSON object a line. Types, encodings, the lenient reader, and descriptions. Pure.

pub mod change;
pub mod community_id;
pub mod describe;
pub mod fingerprint;
pub mod format;
mod json;
pub mod lines;
pub mod magic;
pub mod read;
pub mod restrict;
pub mod schema;
mod shorten;
pub mod state;

pub use change::*;
pub use fingerprint::Fingerprint;
pub use schema::*;
pub use state::*;
