//! The programs' own messages (aya-log), passed on to the agent's log. Silent unless asked for.

use super::attach::Attached;

/// Passes the programs' messages on to `tracing` from now on, on a task of the current runtime.
pub fn forward(attached: &mut Attached) {
    let logger = match aya_log::EbpfLogger::init_with_logger(attached.ebpf_mut(), ToTracing) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "the programs' own messages can't be read");
            return;
        }
    };
    // A thread that polls: the messages are for debugging and few.
    let mut logger = logger;
    let spawned = std::thread::Builder::new().name("program-logs".into()).spawn(move || {
        loop {
            logger.flush();
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "the programs' own messages can't be read");
    }
}

struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!(target: "netpol_trace::ebpf", level = %record.level(), "{}", record.args());
    }

    fn flush(&self) {}
}
