//! Other programs that report drops, for `cargo xtask bench drops` to compare with.

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

/// The folder that has them, filled if need be. `None` if that fails: the bench then reports each as missing.
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
