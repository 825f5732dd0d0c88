//! A kernel event of arbitrary bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpol_trace_common::DropEvent;

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() < size_of::<DropEvent>() {
        return;
    }
    // SAFETY: plain words, valid for every bit pattern, and `bytes` is long enough.
    let event = unsafe { bytes.as_ptr().cast::<DropEvent>().read_unaligned() };
    if let Ok(packet) = netpol_trace::packet::decode(&event) {
        assert!(packet.segments >= 1);
    }
});
