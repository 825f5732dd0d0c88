//! Untrusted DNS answers, and the table of names that the agent keeps of them. The table lives for the whole run, so unbounded
//! growth would show (`-rss_limit_mb`).
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
    // No name can break a line or control a terminal.
    for name in &answer.names {
        assert!(name.len() <= 4 * 255 && name.chars().all(|c| c.is_ascii_graphic() && c != '"'), "{name:?}");
    }
    let address = IpAddr::from([10, 0, 0, *pod]);
    NAMES.with_borrow_mut(|names| {
        let now = Instant::now();
        names.add_answer(u32::from(*pod), address, message, now);
        for given in &answer.addresses {
            let known = names.of(address, given.ip, now);
            assert!(known.len() <= 4 && (known.is_empty() || known.contains(&answer.names[0])), "{known:?}");
        }
    });
});
