//! DNS answers from whoever answers a pod, and the names that are kept of them. The table lives for the whole run: memory that answers
//! could make grow would show (`-rss_limit_mb`).
#![no_main]

use std::cell::RefCell;
use std::net::IpAddr;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use netpol_trace::pipeline::connections::DnsNames;

thread_local! {
    static NAMES: RefCell<DnsNames> = RefCell::default();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((pod, message)) = bytes.split_first() else { return };
    let Some(answer) = netpol_trace::packet::dns::parse(message) else { return };
    // Neither a line nor a terminal is anybody's to write to.
    for name in &answer.names {
        assert!(name.len() <= 4 * 255 && name.chars().all(|c| c.is_ascii_graphic() && c != '"'), "{name:?}");
    }
    let address = IpAddr::from([10, 0, 0, *pod]);
    NAMES.with_borrow_mut(|names| {
        let now = Instant::now();
        names.told(u32::from(*pod), address, message, now);
        for told in &answer.addresses {
            let known = names.of(address, told.ip, now);
            assert!(known.len() <= 4 && (known.is_empty() || known.contains(&answer.names[0])), "{known:?}");
        }
    });
});
