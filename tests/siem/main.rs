//! Records in the hands of those who read them: schemas as they are published, rsyslog, Prometheus, OTLP's own types.
//!
//! The consumers are real programs, which `cargo xtask setup` puts into the cache; what is missing is skipped, with the reason.

mod consumers;
mod formats;
mod otelcol;
mod prometheus;
mod refusals;
mod rsyslog;
mod run;
mod slow;
