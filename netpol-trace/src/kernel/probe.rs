//! Which hooks this kernel lets us load, for `doctor`.

use super::{KernelError, Options};

/// The outcome of loading and attaching one hook, after which it is detached again.
#[derive(Debug)]
pub struct Probe {
    pub hook: &'static str,
    pub result: Result<String, KernelError>,
}

/// Tries each hook for real.
pub fn probe() -> Vec<Probe> {
    let result = super::open(&Options { ring_bytes: 4096 * 16, ..Options::default() }).map(|(attached, ..)| {
        match attached.hook() {
            super::attach::Hook::BtfTracepoint => "as BTF tracepoint".to_owned(),
            super::attach::Hook::RawTracepoint(why) => format!("as raw tracepoint (BTF tracepoint: {why})"),
        }
    });
    vec![Probe { hook: "kfree_skb", result }]
}
