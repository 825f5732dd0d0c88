//! The container runtime of the tests: Debian's containerd, unpacked into the cache and never installed, so that none starts on this
//! machine. runc comes with what images are made by.

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

/// Gets it. A machine that can't have it is no error: its test is skipped.
pub fn ensure() -> Result<()> {
    if !packages::unpack(&DEBIAN, &folder())? {
        println!("This is not Debian: the tests of the image in containerd will be skipped");
    }
    Ok(())
}
