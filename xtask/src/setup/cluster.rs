//! The test cluster's programs, built by Go from the versions that tests/cluster pins.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cluster_programs::{GoProgram, PROGRAMS};
use crate::{machine, toolchain};

/// With other Go releases the API server's OpenAPI comes out malformed (1.27), or its module asks for a newer one.
const GO: &str = "go1.26";

/// Returns the programs that are not built yet.
pub fn missing(wanted: &[GoProgram]) -> Vec<GoProgram> {
    let cache = toolchain::cache_dir();
    wanted.iter().copied().filter(|program| !program.path(&cache).is_file()).collect()
}

pub fn are_built(wanted: &[GoProgram]) -> bool {
    missing(wanted).is_empty()
}

/// Builds what is missing. The API server takes minutes; the rest share most of what it compiles.
///
/// # Errors
/// What to install if there is no Go of the right release.
pub fn ensure(wanted: &[GoProgram]) -> Result<()> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    check_go()?;
    missing.iter().try_for_each(build)
}

/// Why the programs that are missing can't be built here, if so.
pub fn no_go() -> Option<String> {
    if are_built(&PROGRAMS) { None } else { check_go().err().map(|error| format!("{error:#}")) }
}

fn check_go() -> Result<()> {
    if machine::program("go").is_none() {
        bail!(
            "the test cluster's programs are built by {GO}, and there is no `go` here: install Go 1.26 (https://go.dev/dl)"
        );
    }
    // Inside a module, where go.mod and GOTOOLCHAIN decide which release builds.
    let version = machine::output(go().args(["env", "GOVERSION"]).current_dir(modules().join("kubernetes")))?;
    if version != GO && !version.starts_with(&format!("{GO}.")) {
        bail!(
            "the test cluster's programs are built by {GO}, and here is {version}: install Go 1.26, or set GOTOOLCHAIN={GO}.0"
        );
    }
    Ok(())
}

fn build(program: &GoProgram) -> Result<()> {
    let folder = program.module.cached(&toolchain::cache_dir());
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // Checkouts share the cache: while one builds, others wait.
    let lock = File::create(folder.join("lock")).context("make a lock file")?;
    lock.lock().context("lock the cache")?;
    let path = folder.join(program.name);
    if path.is_file() {
        return Ok(());
    }
    let start = Instant::now();
    let (name, version) = (program.name, program.module.version());
    println!("Building {name} (of {} {version}) into {}", program.module.folder, folder.display());
    let unfinished = folder.join(format!("{name}.unfinished"));
    let mut command = go();
    command.args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &link_flags(version), "-o"]);
    command.arg(&unfinished).arg(program.package).current_dir(modules().join(program.module.folder));
    machine::run(&mut command).with_context(|| format!("{name} can't be built"))?;
    fs::rename(&unfinished, &path)?;
    println!("Built {name} in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Leaves out symbols and sets the version as Kubernetes' own build does.
fn link_flags(version: &str) -> String {
    let mut numbers = version.split('.');
    let mut number = || numbers.next().unwrap_or_default();
    let (major, minor) = (number(), number());
    let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    ["-s -w", &set("gitVersion", &format!("v{version}")), &set("gitMajor", major), &set("gitMinor", minor)].join(" ")
}

/// Go without the user's settings that would change what is built.
fn go() -> Command {
    let mut command = Command::new("nice");
    command.arg("go").env("GOFLAGS", "").env("CGO_ENABLED", "0").stdin(Stdio::null());
    for name in ["GOOS", "GOARCH", "GOWORK"] {
        command.env_remove(name);
    }
    command
}

fn modules() -> std::path::PathBuf {
    Path::new(machine::root()).join("tests/cluster")
}
