//! A row for each mechanism that drops packets, and for each kind of drop that is not a policy's.
//!
//! Each row prints a line `row: {…}`, from which `cargo xtask compatibility` makes docs/compatibility.md.

pub mod bridges;
mod iptables;
mod netkit;
mod nftables;
mod others;
mod programs;
pub mod queues;
mod sctp;
pub mod services;
mod switch;
