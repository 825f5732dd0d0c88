//! An untrusted log, as `suggest` and `replay` read it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let log = netpol_trace::recorded::connections::read(bytes).expect("reading from memory does not fail");
    for connection in &log.connections {
        let _ = netpol_trace::text::escape(&connection.title());
    }
});
