//! The kernel's side: finds out what the running kernel looks like, loads and attaches the programs, and reads their records and counters.
//! The only folder that names aya or calls bpf(2).
//!
//! ```text
//! /sys/kernel/btf/vmlinux ─> layout ─┐
//! /proc/kallsyms ─────────> symbols ─┼─> filter ─> programs (attached) ─> ring ─> aggregate ─> site_names ─> KernelDrop
//!                                    └──────────────────────────────────> counters
//! ```

pub mod aggregate;
pub mod attach;
mod bpf;
pub mod btf;
pub mod clock;
pub mod counters;
mod drop;
mod errors;
pub mod filter;
pub mod handover;
pub mod hook;
pub mod layout;
mod machine;
mod mapping;
mod object;
mod open;
mod options;
pub mod pins;
pub mod probe;
pub mod programs;
pub mod reject;
pub mod ring;
mod site_names;
pub mod symbols;
pub mod tc;

pub use drop::{AggregatedDrop, KernelDrop, RawSite};
pub use errors::{BTF_PATH, KernelError};
pub use machine::release;
pub use open::open;
pub use options::KernelOptions;
pub use site_names::SiteNames;
