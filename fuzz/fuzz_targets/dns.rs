//! DNS answers from whoever answers a pod.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = netpol_trace::dns::parse(bytes);
});
