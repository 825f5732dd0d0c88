//! Open vSwitch's ovs-dpctl, for the lab's rows on kernels that have the module. Nothing of it is installed, so no service starts.

use std::path::PathBuf;

use super::packages;
use crate::toolchain;

/// The package and the libraries that a small system may lack, as Debian 12 names them. Without them the rows are skipped.
const DEBIAN: [&str; 7] =
    ["openvswitch-switch", "libxdp1", "libbpf1", "libcap-ng0", "libevent-2.1-7", "libnuma1", "libunbound8"];

/// The folder that has it, filled if need be.
pub fn folder() -> Option<PathBuf> {
    let folder = toolchain::cache_dir().join("ovs");
    match packages::unpack(&DEBIAN, &folder) {
        Ok(true) => Some(folder),
        Ok(false) => None,
        Err(error) => {
            println!("No Open vSwitch for the lab: {error:#}");
            None
        }
    }
}
