//! The container runtime of the tests: Debian's containerd, unpacked into the cache and never installed, so that none starts on this
//! machine. runc is installed with buildah.

use anyhow::Result;

use super::packages;
use crate::toolchain;

const DEBIAN: [&str; 1] = ["containerd"];

/// Where the tests look for it.
fn folder() -> std::path::PathBuf {
    toolchain::cache_dir().join("containerd")
}

pub fn is_missing() -> bool {
    !folder().join("done").exists()
}

/// Unpacks it. On a machine that is not Debian its tests are skipped.
pub fn ensure() -> Result<()> {
    if !packages::unpack(&DEBIAN, &folder())? {
        println!("This is not Debian: the tests of the image in containerd will be skipped");
    }
    Ok(())
}
