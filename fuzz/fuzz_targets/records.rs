//! An untrusted log, as `suggest` and `replay` read it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let log = netpol_trace::recorded::read(bytes).expect("reading from memory does not fail");
    for flow in &log.flows {
        let _ = netpol_trace::text::escape(&flow.title());
    }
});
