//! Finds the consumers and runs them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use netpol_trace_tests::skip::missing;

/// The folder that `cargo xtask setup` fills: Python packages, and Debian packages unpacked, none of them installed.
fn folder() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache"))).unwrap_or_default();
    cache.join("netpol-trace/siem")
}

/// Requires a consumer's file.
pub fn find(file: &str) -> Result<PathBuf> {
    let path = folder().join(file);
    if path.exists() { Ok(path) } else { Err(missing(format!("no {}: cargo xtask setup gets it", path.display()))) }
}

/// Runs `check.py FORMAT FILE...` with the packages of requirements.txt and returns its output.
pub fn check(python: &Path, format: &str, files: &[PathBuf]) -> Result<serde_json::Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("siem/check.py");
    let output = Command::new(python).arg(script).arg(format).args(files).output()?;
    if !output.status.success() {
        bail!("{format}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

pub const PYTHON: &str = "python/bin/python";

/// Requires a program of the unpacked packages, and sets the path of its libraries.
pub fn program(name: &str) -> Result<Command> {
    let mut command = Command::new(find(&format!("debian/{name}"))?);
    let libraries = format!("debian/usr/lib/{}-linux-gnu", env::consts::ARCH);
    command.env("LD_LIBRARY_PATH", folder().join(libraries));
    Ok(command)
}

/// The unpacked packages' own files.
pub fn debian(path: &str) -> PathBuf {
    folder().join("debian").join(path)
}
