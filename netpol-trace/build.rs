//! Builds the eBPF object, which is embedded in the agent, so that the agent is a single file.

use std::path::PathBuf;
use std::process::ExitCode;

#[path = "build/debug.rs"]
mod debug;
#[path = "build/toolchain.rs"]
mod toolchain;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let var = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(var("OUT_DIR")?);
    for part in [
        "netpol-trace-ebpf/src",
        "netpol-trace-ebpf/Cargo.toml",
        "netpol-trace-ebpf/Cargo.lock",
        "netpol-trace-common/src",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(part).display());
    }
    println!("cargo::rerun-if-changed=build/debug.rs");
    println!("cargo::rerun-if-changed=build/toolchain.rs");
    println!("cargo::rerun-if-env-changed=PATH");

    let toolchain = toolchain::find()?;
    let manifest = root
        .join("netpol-trace-ebpf/Cargo.toml")
        .canonicalize()
        .map_err(|e| format!("the eBPF crate beside the agent's can't be read: {e}"))?;
    let target = out.join("ebpf");
    let output = toolchain::build_command(&toolchain, &manifest, &target)
        .arg("--locked")
        .output()
        .map_err(|e| format!("cargo for the eBPF object can't be started: {e}"))?;
    if !output.status.success() {
        return Err(format!("the eBPF object does not build:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let object = target.join(toolchain::TARGET).join("release/netpol-trace");
    let put = |error: std::io::Error| format!("{} can't be copied: {error}", object.display());
    let stripped = debug::strip(&std::fs::read(&object).map_err(put)?)?;
    std::fs::write(out.join("netpol-trace.bpf.o"), stripped).map_err(put)
}
