//! Finds the compiler and linker that build the eBPF object.
//!
//! The agent's build script includes this file as a module, and so does `cargo xtask` (setup installs what [`find`] misses). It uses only the
//! standard library, so that the build script builds quickly.
//!
//! Two kinds of compiler work, both with LLVM's BPF back end:
//! - a distribution's rustc with a ready-made `core` for `bpfel-unknown-none` (Debian: `rustc-web` and
//!   `libstd-rust-web-dev-bpf`);
//! - a rustup nightly with `rust-src`, which builds `core` itself (`-Z build-std`).
//!
//! Both need a bpf-linker that is linked with the LLVM library of that compiler.
#![allow(dead_code, reason = "each of the two users needs only a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The eBPF target triple: little-endian, as all machines that the agent supports.
pub const TARGET: &str = "bpfel-unknown-none";
/// The bpf-linker that setup installs. Older ones lack the features that name an LLVM version.
pub const BPF_LINKER_VERSION: &str = "0.13.0";
/// The oldest compiler that builds the workspace (`rust-version` in Cargo.toml).
const MIN_RUSTC: (u32, u32) = (1, 95);
/// The distribution's compiler; rustup's has another path and comes first in PATH.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

/// A compiler and a linker with the same version of LLVM.
#[derive(Debug, Clone)]
pub struct Toolchain {
    pub kind: Kind,
    /// The bpf-linker program.
    pub linker: PathBuf,
    /// The major version of the compiler's LLVM.
    pub llvm: u32,
}

/// A compiler with `core` for the eBPF target.
#[derive(Debug, Clone)]
pub struct Compiler {
    pub kind: Kind,
    /// The major version of its LLVM.
    pub llvm: u32,
    pub sysroot: PathBuf,
}

/// Where `core` for the eBPF target comes from.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A distribution's compiler that ships it.
    Debian { rustc: PathBuf },
    /// A rustup toolchain with `rust-src`, by its name.
    Nightly { toolchain: String },
}

/// Finds a compiler and a linker.
///
/// # Errors
/// What is missing and what to do, for people.
pub fn find() -> Result<Toolchain, String> {
    let Compiler { kind, llvm, .. } = find_compiler().ok_or_else(|| {
        format!(
            "no Rust compiler for the eBPF target {TARGET} on this machine.\n\
             Run: cargo xtask setup\n\
             Or by hand, one of:\n  \
             Debian 12 or later: apt-get install rustc-web libstd-rust-web-dev-bpf\n  \
             with rustup:        rustup toolchain install nightly --component rust-src"
        )
    })?;
    let linker = find_linker(llvm).ok_or_else(|| {
        format!(
            "no bpf-linker for LLVM {llvm} on this machine.\n\
             Run: cargo xtask setup\n\
             It installs bpf-linker {BPF_LINKER_VERSION} as {}",
            linker_path(llvm).display()
        )
    })?;
    Ok(Toolchain { kind, linker, llvm })
}

/// Finds a compiler, preferably the distribution's, which needs no nightly toolchain.
pub fn find_compiler() -> Option<Compiler> {
    let rustc = PathBuf::from(DISTRIBUTION_RUSTC);
    if let Some(sysroot) = sysroot(&mut plain(&rustc))
        && has_core(&sysroot)
        && let Some(llvm) = llvm_version(&mut plain(&rustc))
    {
        return Some(Compiler { kind: Kind::Debian { rustc }, llvm, sysroot });
    }
    nightlies().into_iter().find_map(|toolchain| {
        let sysroot = sysroot(&mut rustup(&toolchain, "rustc"))?;
        sysroot.join("lib/rustlib/src/rust/library/core").is_dir().then_some(())?;
        let llvm = llvm_version(&mut rustup(&toolchain, "rustc"))?;
        Some(Compiler { kind: Kind::Nightly { toolchain }, llvm, sysroot })
    })
}

/// rustup's nightly toolchains, by name; with or without `rust-src`.
pub fn nightlies() -> Vec<String> {
    let list = stdout(plain("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect()
}

/// Finds a bpf-linker that runs: the one that setup installed, or one in PATH that is recent enough.
pub fn find_linker(llvm: u32) -> Option<PathBuf> {
    // Run it: its LLVM library may have been removed with the toolchain.
    let version = |path: &Path| stdout(plain(path).arg("--version"));
    let cached = linker_path(llvm);
    if version(&cached).is_some() {
        return Some(cached);
    }
    let in_path = env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join("bpf-linker")).find(|p| p.is_file())?;
    let found = version(&in_path)?;
    let found = release(found.trim().strip_prefix("bpf-linker ")?)?;
    (found >= release(BPF_LINKER_VERSION)?).then_some(in_path)
}

/// The path at which setup installs bpf-linker: a folder for each version of it and of LLVM, so that an upgrade of either builds a new one.
pub fn linker_path(llvm: u32) -> PathBuf {
    linker_root(llvm).join("bin/bpf-linker")
}

/// The root of `cargo install` for bpf-linker.
pub fn linker_root(llvm: u32) -> PathBuf {
    cache_dir().join(format!("bpf-linker-{BPF_LINKER_VERSION}-llvm{llvm}"))
}

/// The folder for things that take long to build and belong to no checkout: `$XDG_CACHE_HOME/netpol-trace`.
pub fn cache_dir() -> PathBuf {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(env::temp_dir)
        .join("netpol-trace")
}

/// The command `cargo build --release` for the eBPF crate at `manifest`, with output under `target_dir`. The caller may add arguments. The
/// object is then `target_dir/bpfel-unknown-none/release/<name of the binary>`.
pub fn build_command(toolchain: &Toolchain, manifest: &Path, target_dir: &Path) -> Command {
    cargo_command(toolchain, "build", manifest, target_dir)
}

/// A cargo subcommand (`build`, `clippy`) for the eBPF crate, with the same settings as [`build_command`].
pub fn cargo_command(toolchain: &Toolchain, subcommand: &str, manifest: &Path, target_dir: &Path) -> Command {
    let mut command = match &toolchain.kind {
        Kind::Debian { rustc } => {
            let mut command = plain(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            // Lets the stable compiler accept the unstable features that aya-ebpf's assembler code needs.
            command.arg(subcommand).env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command
        }
        Kind::Nightly { toolchain } => {
            let mut command = rustup(toolchain, "cargo");
            command.args([subcommand, "-Z", "build-std=core"]);
            command
        }
    };
    command
        .args(["--release", "--target", TARGET, "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(target_dir)
        // bpf-linker makes BTF from the debug information.
        .env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker);
    if let Some(dir) = manifest.parent().filter(|dir| dir.is_absolute()) {
        command.current_dir(dir);
    }
    command
}

/// A command without the environment variables that cargo and rustup set for the running build: another compiler would use the host build's
/// flags, wrapper, target or libraries.
fn plain(program: impl AsRef<std::ffi::OsStr>) -> Command {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_BUILD_JOBS",
    ];
    const DROPPED: [&str; 7] =
        ["RUSTFLAGS", "RUSTDOC", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "OUT_DIR", "TARGET", "MAKEFLAGS"];
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let of_cargo = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if of_cargo || text.starts_with("RUSTC") || DROPPED.contains(&text) {
            command.env_remove(&name);
        }
    }
    command
}

fn rustup(toolchain: &str, program: &str) -> Command {
    let mut command = plain("rustup");
    command.args(["run", toolchain, program]);
    command
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    Some(PathBuf::from(stdout(rustc.args(["--print", "sysroot"]))?.trim()))
}

/// True if the sysroot has a compiled `core` for the eBPF target.
fn has_core(sysroot: &Path) -> bool {
    let Ok(dir) = fs::read_dir(sysroot.join("lib/rustlib").join(TARGET).join("lib")) else { return false };
    dir.flatten().any(|entry| entry.file_name().to_str().is_some_and(|n| n.starts_with("libcore-")))
}

/// The major version of LLVM: 22 for `LLVM version: 22.1.8` in `rustc -vV`. `None` for a compiler that is too old.
fn llvm_version(rustc: &mut Command) -> Option<u32> {
    let text = stdout(rustc.arg("-vV"))?;
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
    if release(field("release: ")?)? < MIN_RUSTC {
        return None;
    }
    field("LLVM version: ")?.split('.').next()?.trim().parse().ok()
}

/// The first two numbers of a version such as `0.13.0`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// The standard output of a command, if it runs and succeeds.
fn stdout(command: &mut Command) -> Option<String> {
    let output = command.stderr(std::process::Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
