//! What `tail` does with records, wherever they come from: select, order, show each once, render.
//!
//! ```text
//! client (files | agents) -> select -> order (by time, across runs) -> dedup (same id, or same packet seen by two agents)
//!     -> render (text | json | summary) -> closing notes
//! ```
//!
//! Each line is split off once and parsed once. Only what does not fit into memory and is sorted on disk is parsed a second time.

pub mod client;
pub mod closing;
mod dedup;
mod known_names;
mod line;
mod order;
pub mod render;
pub mod select;
pub mod stream;
