//! Debian packages, each found by a program that it installs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Need;
use crate::machine;
use crate::toolchain;

/// A program, the package that has it, and who needs it.
const PROGRAMS: [(Need, &str, &str); 19] = [
    (Need::Build, "cc", "gcc libc6-dev"),
    (Need::Lab, "ip", "iproute2"),
    (Need::Lab, "nft", "nftables"),
    (Need::Lab, "iptables-legacy", "iptables"),
    (Need::Lab, "ipset", "ipset"),
    (Need::Lab, "bpftool", "bpftool"),
    (Need::Lab, "modprobe", "kmod"),
    (Need::Lab, "ping", "iputils-ping"),
    (Need::Lint, "git", "git"),
    (Need::Vm, "qemu-system-x86_64", "qemu-system-x86"),
    (Need::Vm, "busybox", "busybox-static"),
    (Need::Vm, "cpio", "cpio"),
    (Need::Vm, "xz", "xz-utils"),
    (Need::Vm, "zstd", "zstd"),
    (Need::Vm, "depmod", "kmod"),
    (Need::Consumers, "python3", "python3-venv"),
    (Need::Peers, "bpftrace", "bpftrace"),
    (Need::Image, "buildah", "buildah"),
    (Need::Image, "runc", "runc"),
];
/// The eBPF compiler and its linter, on the releases that have them (Debian 12's security suite and later).
const COMPILER: &str = "rustc-web libstd-rust-web-dev-bpf";
const LINTER: &str = "rust-web-clippy";

/// Downloads packages and unpacks them into a folder of the cache, once. They are never installed, so that no service starts on this
/// machine. The folder's file `done` lists the packages. False if this is not Debian.
pub fn unpack(packages: &[&str], folder: &Path) -> Result<bool> {
    let (done, wanted) = (folder.join("done"), packages.join("\n"));
    if fs::read_to_string(&done).is_ok_and(|done| done == wanted) {
        return Ok(true);
    }
    if machine::program("dpkg-deb").is_none() || machine::program("apt-get").is_none() {
        return Ok(false);
    }
    let _ = fs::remove_dir_all(folder);
    let files = folder.join("packages");
    fs::create_dir_all(&files)?;
    let download = || {
        let mut download = Command::new("apt-get");
        machine::output(
            download.args(["-o", "APT::Sandbox::User=root", "download", "-qq"]).args(packages).current_dir(&files),
        )
    };
    if download().is_err() {
        // The package lists may be missing or too old.
        machine::output(Command::new("apt-get").args(["-o", "DPkg::Lock::Timeout=300", "update", "-qq"]))
            .context("can't update the package lists; run as root: apt-get update")?;
        download()?;
    }
    for package in fs::read_dir(&files)? {
        machine::output(Command::new("dpkg-deb").arg("-x").arg(package?.path()).arg(folder))?;
    }
    fs::remove_dir_all(&files)?;
    fs::write(done, wanted)?;
    Ok(true)
}

/// Returns the packages that are missing for these needs.
pub fn missing(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(need, program, _)| needs.contains(need) && machine::program(program).is_none())
        .flat_map(|(_, _, packages)| packages.split(' '))
        .collect();
    let compiler = toolchain::find_compiler();
    // Without root the caller tries rustup next.
    if needs.contains(&Need::Build) && compiler.is_none() && machine::is_root() && machine::program("apt-get").is_some()
    {
        packages.extend(COMPILER.split(' '));
    }
    let by_distribution = match compiler {
        Some(compiler) => matches!(compiler.kind, toolchain::Kind::Debian { .. }),
        None => packages.contains(&"rustc-web"),
    };
    if needs.contains(&Need::Lint) && by_distribution && !std::path::Path::new("/usr/bin/clippy-driver").exists() {
        packages.push(LINTER);
    }
    packages.dedup();
    packages
}

/// Installs the packages that are missing for these needs.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let wanted = missing(needs);
    if wanted.is_empty() {
        return Ok(());
    }
    let list = wanted.join(" ");
    if machine::program("apt-get").is_none() {
        bail!("this is not Debian; install with your package manager what Debian calls: {list}");
    }
    if !machine::is_root() {
        bail!("packages are missing, and installing them takes root: sudo apt-get install -y {list}");
    }
    let start = Instant::now();
    println!("Installing packages: {list}");
    quietly(apt().args(["update", "-qq"]))?;
    let (there, unknown): (Vec<&str>, Vec<&str>) = wanted.into_iter().partition(|package| known(package));
    if !there.is_empty() {
        quietly(apt().args(["install", "-y", "-qq", "--no-install-recommends"]).args(&there))?;
    }
    println!("Installed them in {:.0} s", start.elapsed().as_secs_f32());
    // The compiler may come from rustup instead, which the caller tries next.
    let unknown: Vec<&str> = unknown.into_iter().filter(|p| !COMPILER.contains(p) && *p != LINTER).collect();
    if !unknown.is_empty() {
        bail!("this release of Debian has no package {}", unknown.join(" "));
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // On a fresh machine another dpkg may be running.
    command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    command
}

/// Runs a command and shows its output only if it fails.
fn quietly(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{}: {}", machine::show(command), output.status);
    }
    Ok(())
}

/// True if apt can install the package.
fn known(package: &str) -> bool {
    machine::output(Command::new("apt-cache").args(["policy", package]))
        .is_ok_and(|text| text.lines().any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)")))
}
