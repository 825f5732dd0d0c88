//! What benches share: the kernel's statistics of programs, senders at full rate, figures of processes from /proc, tables.

pub mod flood;
pub mod process;
pub mod statistics;
pub mod watched;

/// The median; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
