//! Programs that read records in the tests: Python packages and Debian packages, unpacked into the cache and never installed, so that
//! no service starts on this machine.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::packages;
use crate::machine;
use crate::toolchain;

/// rsyslog with the libraries that only it uses, and Prometheus with promtool.
const DEBIAN: [&str; 5] = ["rsyslog", "libestr0", "libfastjson4", "liblognorm5", "prometheus"];

fn folder() -> PathBuf {
    toolchain::cache_dir().join("siem")
}

fn requirements() -> PathBuf {
    machine::root().join("tests/siem/requirements.txt")
}

/// What is missing, in words. Tests that need it are skipped.
pub fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !has_python() {
        missing.push("the Python packages of tests/siem/requirements.txt");
    }
    if !folder().join("debian/done").exists() {
        missing.push("rsyslog and Prometheus for the tests");
    }
    missing
}

/// True if the packages in the cache are those of requirements.txt.
fn has_python() -> bool {
    let stamp = fs::read_to_string(folder().join("python/requirements.txt"));
    stamp.is_ok_and(|stamp| fs::read_to_string(requirements()).is_ok_and(|list| list == stamp))
}

/// Downloads what is missing.
pub fn ensure() -> Result<()> {
    let start = Instant::now();
    if missing().is_empty() {
        return Ok(());
    }
    let errors: Vec<String> =
        [python(), debian()].into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect();
    if !errors.is_empty() {
        bail!(errors.join("\n"));
    }
    println!("Got rsyslog, Prometheus and Python packages for the tests in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

fn python() -> Result<()> {
    if has_python() {
        return Ok(());
    }
    let folder = folder().join("python");
    let _ = fs::remove_dir_all(&folder);
    machine::output(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        .context("no Python with venv; on Debian: apt-get install python3-venv")?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    machine::output(pip.args(["--only-binary", ":all:", "--requirement"]).arg(requirements()))?;
    fs::copy(requirements(), folder.join("requirements.txt"))?;
    Ok(())
}

fn debian() -> Result<()> {
    if packages::unpack(&DEBIAN, &folder().join("debian"))? {
        return Ok(());
    }
    println!("This is not Debian: the tests with rsyslog and Prometheus will be skipped");
    Ok(())
}
