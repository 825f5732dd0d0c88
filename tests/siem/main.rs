//! Consumers read the agent's records: published schemas, rsyslog, Prometheus, OTLP's own types.
//!
//! `cargo xtask setup` puts the consumers into the cache. A test whose consumer is missing is skipped.

mod consumers;
mod formats;
mod otelcol;
mod prometheus;
mod refusals;
mod rsyslog;
mod run;
mod slow;
