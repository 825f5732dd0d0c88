//! What benches share: the kernel's clocks on programs, senders at full rate, processes as /proc tells them, tables.

pub mod flood;
pub mod process;
pub mod statistics;
pub mod watched;

/// The middle one; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
