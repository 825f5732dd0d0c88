//! Other programs that tell of drops, for `cargo xtask bench drops` to compare with.

use std::path::PathBuf;

use super::packages;
use crate::toolchain;

/// ulogd, bcc's tools, and the libraries that only they use. bpftrace, whose libraries are too many, is installed ([`Need::Peers`](super::Need)).
const DEBIAN: [&str; 9] = [
    "ulogd2",
    "libnetfilter-log1",
    "libnetfilter-acct1",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libmnl0",
    "bpfcc-tools",
    "python3-bpfcc",
    "python3-netaddr",
];

/// Where they are, brought there if need be. `None`: the bench says of each that it is missing.
pub fn folder() -> Option<PathBuf> {
    let folder = toolchain::cache_dir().join("peers");
    match packages::unpack(&DEBIAN, &folder) {
        Ok(true) => Some(folder),
        Ok(false) => None,
        Err(error) => {
            println!("No programs to compare with: {error:#}");
            None
        }
    }
}
