//! A BPF file system of a test's own, for pins.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A mounted BPF file system. Unmounted, and its pins gone, when dropped.
#[derive(Debug)]
pub struct BpfFs(TempDir);

impl BpfFs {
    pub fn mount() -> Result<BpfFs> {
        let folder = tempfile::tempdir()?;
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mount a BPF file system")?;
        Ok(BpfFs(folder))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}
