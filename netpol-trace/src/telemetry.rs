//! The program's own log, on stderr: stdout has records only.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::prelude::*;

use crate::cluster::api::LOG_OF_CLIENT;

/// Starts logging. `RUST_LOG` chooses the level, or levels by module as in `info,netpol_trace::kernel=debug`; `info` by default.
pub fn init() {
    let (filter, error) = filter(&std::env::var("RUST_LOG").unwrap_or_default());
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(std::io::stderr);
    subscriber.with_ansi(colours).finish().with(filter).init();
    if let Some(error) = error {
        tracing::warn!(%error, "RUST_LOG is ignored: expected a level, or levels by module such as info,hyper=debug");
    }
}

/// Parses the value of `RUST_LOG`. Returns the default if it is empty or wrong, and the error.
fn filter(value: &str) -> (Targets, Option<ParseError>) {
    let default = Targets::new().with_default(LevelFilter::INFO).with_target(LOG_OF_CLIENT, LevelFilter::OFF);
    match value.parse() {
        _ if value.is_empty() => (default, None),
        Ok(filter) => (filter, None),
        Err(error) => (default, Some(error)),
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_by_module_and_a_mistake() {
        let logs = |value, module, level| filter(value).0.would_enable(module, &level);
        assert!(logs("", "netpol_trace", Level::INFO) && !logs("", "netpol_trace", Level::DEBUG));
        assert!(!logs("", "kube_client::client", Level::ERROR));
        assert!(logs("debug", "netpol_trace", Level::DEBUG) && logs("debug", "kube_client", Level::DEBUG));
        let by_module = "warn,netpol_trace::kernel=trace";
        assert!(logs(by_module, "netpol_trace::kernel::attach", Level::TRACE));
        assert!(!logs(by_module, "netpol_trace::pipeline", Level::INFO));
        assert!(filter(by_module).1.is_none() && filter("a=b=c").1.is_some());
        assert!(logs("a=b=c", "netpol_trace", Level::INFO));
    }
}
