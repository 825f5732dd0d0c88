//! The eBPF compiler and linker, and what else cargo installs into the cache.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::machine;
use crate::toolchain::{self, BPF_LINKER_VERSION, Compiler, Kind};

const CARGO_DENY_VERSION: &str = "0.20.2";

/// A compiler's name for people.
pub fn name(kind: &Kind) -> String {
    match kind {
        Kind::Debian { rustc } => format!("{} with its own core for {}", rustc.display(), toolchain::TARGET),
        Kind::Nightly { toolchain } => format!("rustup's {toolchain} with rust-src"),
    }
}

/// Installs a compiler, then a linker that fits it. The caller has tried the distribution's packages before.
pub fn ensure() -> Result<()> {
    if toolchain::find().is_ok() {
        return Ok(());
    }
    if toolchain::find_compiler().is_none() {
        add_nightly()?;
    }
    let compiler =
        toolchain::find_compiler().ok_or_else(|| anyhow!("{}", toolchain::find().err().unwrap_or_default()))?;
    if toolchain::find_linker(compiler.llvm).is_none() {
        install_linker(&compiler)?;
    }
    toolchain::find().map(drop).map_err(|why| anyhow!(why))
}

fn add_nightly() -> Result<()> {
    let rustup = || {
        let mut command = Command::new("rustup");
        command.env_remove("RUSTUP_TOOLCHAIN").stdin(std::process::Stdio::null());
        command
    };
    if machine::program("rustup").is_none() {
        bail!(
            "no compiler for eBPF: install rustup (https://rustup.rs), or Debian's rustc-web and libstd-rust-web-dev-bpf"
        );
    }
    let result = match toolchain::nightlies().first() {
        Some(nightly) => machine::run(rustup().args(["component", "add", "rust-src", "--toolchain", nightly])),
        None => machine::run(rustup().args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ])),
    };
    result.context("rustup can't install a nightly with rust-src; on Debian, root's `apt-get install rustc-web libstd-rust-web-dev-bpf` does instead")
}

/// Builds bpf-linker against the LLVM library that the compiler itself uses: the versions match, and no LLVM
/// development packages are needed.
fn install_linker(compiler: &Compiler) -> Result<()> {
    let start = Instant::now();
    let root = toolchain::linker_root(compiler.llvm);
    println!(
        "Building bpf-linker {BPF_LINKER_VERSION} for LLVM {} into {} (about a minute)",
        compiler.llvm,
        root.display()
    );
    let library = llvm_library(compiler).with_context(|| {
        format!(
            "no LLVM {0} library beside {1}; on Debian: apt-get install llvm-{0}-dev",
            compiler.llvm,
            name(&compiler.kind)
        )
    })?;
    let lib = root.join("lib");
    fs::create_dir_all(&lib)?;
    // One name for linking, and one that bpf-linker loads when it starts (its run path is this folder).
    for link in [Some("libLLVM.so".as_ref()), library.file_name()].into_iter().flatten() {
        let link = lib.join(link);
        let _ = fs::remove_file(&link);
        symlink(&library, &link).with_context(|| format!("can't make the link {}", link.display()))?;
    }
    let mut command = machine::cargo();
    command
        .args(["install", "bpf-linker", "--locked", "--quiet", "--force", "--version", BPF_LINKER_VERSION])
        .args(["--no-default-features", "--features", &format!("llvm-{}", compiler.llvm), "--root"])
        .arg(&root)
        .env("LLVM_PREFIX", &root);
    machine::run(clean(&mut command)).with_context(|| {
        format!("bpf-linker {BPF_LINKER_VERSION} can't be built for LLVM {} (it knows 21, 22 and 23)", compiler.llvm)
    })?;
    println!("Built bpf-linker in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// `libLLVM.so.22.1` in Debian, `libLLVM.so.22.1-rust-1.97.0-nightly` in a rustup toolchain.
fn llvm_library(compiler: &Compiler) -> Option<PathBuf> {
    let lib = compiler.sysroot.join("lib");
    let multiarch = lib.join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let prefix = format!("libLLVM.so.{}", compiler.llvm);
    [lib, multiarch, compiler.sysroot.join("lib64"), format!("/usr/lib/llvm-{}/lib", compiler.llvm).into()]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(|dir| dir.flatten())
        .find(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|entry| entry.path())
}

/// Finds cargo-deny in PATH or in the cache.
pub fn cargo_deny() -> Option<PathBuf> {
    machine::program("cargo-deny")
        .or_else(|| Some(cargo_deny_root().join("bin/cargo-deny")).filter(|path| path.exists()))
}

fn cargo_deny_root() -> PathBuf {
    toolchain::cache_dir().join(format!("cargo-deny-{CARGO_DENY_VERSION}"))
}

/// Builds cargo-deny once, without optimization: that takes 40 s instead of minutes, and a run takes one second anyway.
pub fn ensure_cargo_deny() -> Result<()> {
    if cargo_deny().is_some() {
        return Ok(());
    }
    let start = Instant::now();
    println!("Building cargo-deny {CARGO_DENY_VERSION} into {} (about a minute)", cargo_deny_root().display());
    let mut command = machine::cargo();
    command
        .args(["install", "cargo-deny", "--locked", "--quiet", "--version", CARGO_DENY_VERSION, "--root"])
        .arg(cargo_deny_root())
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    machine::run(clean(&mut command)).context("cargo-deny can't be built")?;
    println!("Built cargo-deny in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Removes the environment's settings for the project's own builds: this program is built for this machine.
fn clean(command: &mut Command) -> &mut Command {
    for name in ["CARGO_BUILD_TARGET", "CARGO_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    command.current_dir(Path::new("/"))
}
