//! A real cluster's control plane: etcd and kube-apiserver, with nodes that are network namespaces.
//!
//! `cargo xtask setup` builds the programs (tests/cluster has the versions). A test program has one control plane,
//! [`shared`] by its tests, which ends with it. `cargo xtask cluster up` starts one that stays.

pub mod api;
pub mod control_plane;
pub mod daemon;
pub mod etcd;
pub mod kube_router;
pub mod node;
pub mod probe;
pub mod programs;
pub mod relay;
#[path = "../../netpol-trace/build/toolchain.rs"]
pub(crate) mod toolchain;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};

use crate::skip::missing;
use control_plane::ControlPlane;
use daemon::Lifetime;
use programs::GoProgram;

/// Requires a program that setup builds, and returns its path.
pub fn built(program: &GoProgram) -> Result<PathBuf> {
    let path = program.path(&toolchain::cache_dir());
    if path.is_file() {
        return Ok(path);
    }
    Err(missing(format!("no {} at {}: `cargo xtask setup` builds it, with Go 1.26", program.name, path.display())))
}

/// Requires what the lab requires, the control plane's programs, and these.
pub fn can_run(programs: &[GoProgram]) -> Result<()> {
    crate::can_run_lab()?;
    [programs::ETCD, programs::API_SERVER].iter().chain(programs).try_for_each(|program| built(program).map(drop))
}

/// The folder of the cache into which setup unpacks these Debian packages.
pub fn unpacked(name: &str) -> PathBuf {
    toolchain::cache_dir().join(name)
}

/// This test program's control plane. The first caller starts it.
pub fn shared() -> Result<&'static ControlPlane> {
    static SHARED: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
    let start = || -> Result<ControlPlane> {
        let dir = tempfile::Builder::new().prefix("netpol-trace-cluster-").tempdir()?.keep();
        leave_nothing(&dir).context("start what removes the state later")?;
        ControlPlane::start(&dir, Lifetime::OfThisProgram)
    };
    let shared = SHARED.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    shared.as_ref().map_err(|error| anyhow!("the control plane: {error}"))
}

/// Starts a shell that removes a folder once this program has ended: then the shell's pipe closes. Processes that still write into the
/// folder end at that moment too, so the shell tries more than once.
fn leave_nothing(dir: &std::path::Path) -> Result<()> {
    static JANITOR: OnceLock<Child> = OnceLock::new();
    const SCRIPT: &str = r#"cat >/dev/null; for n in 1 2 3 4 5; do rm -rf -- "$1" 2>/dev/null && exit; sleep 1; done"#;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh"]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    JANITOR.get_or_init(|| command.spawn().expect("every system has sh"));
    Ok(())
}
