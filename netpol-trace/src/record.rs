//! The record, `schema: "netpol-trace/v1"`: one JSON object a line. Pure data: what it says was decided upstream.

pub mod build;
pub mod change;
pub mod community_id;
pub mod ecs;
pub mod encode;
pub mod fingerprint;
pub mod message;
mod names;
pub mod ocsf;
pub mod otel;
mod part;
pub mod restrict;
pub mod schema;
pub mod state;
mod view;

pub use change::*;
pub use fingerprint::Fingerprint;
pub use part::Part;
pub use schema::*;
pub use state::*;
