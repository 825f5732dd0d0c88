//! What `tail` does with records, wherever they come from: select, put in order, show once, and say in one line each.
//!
//! ```text
//! lines ─> select ─> order (time, across runs) ─> once (same id, same packet seen twice) ─> text | json | summary
//! ```

pub mod dedup;
pub mod names;
pub mod order;
pub mod paint;
pub mod select;
pub mod stream;
pub mod summary;
pub mod text;
