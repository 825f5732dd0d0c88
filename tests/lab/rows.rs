//! Every mechanism that drops packets, and everything that must not be taken for one: a row each.
//!
//! Each row prints a line `row: {…}`; `cargo xtask compatibility` makes docs/compatibility.md of them.

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
