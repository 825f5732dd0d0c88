//! `cargo xtask image`: builds the OCI image of the agent: one static binary, from scratch, without a registry.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::machine;
use crate::setup::{self, Need};

/// Build the agent as one static binary and put it into an OCI image (with buildah, from scratch)
///
/// Prints the archive's path. It can be loaded by `ctr -n k8s.io images import`, `kind load image-archive` and `skopeo copy
/// oci-archive:…`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Architecture: amd64 or arm64
    #[arg(long, default_value_t = Arch::of_this_machine())]
    arch: Arch,
    /// The image's name
    #[arg(long, default_value = NAME)]
    name: String,
    /// Use the debug build, which is ready sooner
    #[arg(long)]
    debug: bool,
    /// Put this static binary into the image instead of building one
    #[arg(long, value_name = "PATH", conflicts_with_all = ["debug", "binary_only"])]
    binary: Option<PathBuf>,
    /// Build only the binary
    #[arg(long)]
    binary_only: bool,
    /// Run the image's `doctor` in a container with the DaemonSet's capabilities and the default seccomp profile
    #[arg(long, conflicts_with = "binary_only")]
    run: bool,
    /// With --run: another seccomp profile. Debian 12's default one refuses bpf(2) without CAP_SYS_ADMIN
    #[arg(long, value_name = "PATH", requires = "run")]
    seccomp: Option<PathBuf>,
}

/// An architecture by its name in images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    Amd64,
    Arm64,
}

/// The image's name in the manifests of deploy/.
const NAME: &str = "ghcr.io/netpol-trace/netpol-trace";

/// The capabilities that the manifests of deploy/ add.
const CAPABILITIES: [&str; 3] = ["CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"];

impl Arch {
    pub fn of_this_machine() -> Arch {
        if cfg!(target_arch = "aarch64") { Arch::Arm64 } else { Arch::Amd64 }
    }

    fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64-unknown-linux-gnu",
            Arch::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The linker and C compiler for it, on Debian.
    fn compiler(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64-linux-gnu-gcc",
            Arch::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => {
            setup::ensure(&[Need::Build])?;
            build(args)?
        }
    };
    println!("{}: {:.1} MiB, static", binary.display(), size(&binary)?);
    if args.binary_only {
        return Ok(ExitCode::SUCCESS);
    }
    setup::ensure(&[Need::Image])?;
    let buildah = Buildah::new();
    let (image, archive) = buildah.commit(&binary, args)?;
    println!("{}: {:.1} MiB, {image}, in {:.0} s", archive.display(), size(&archive)?, start.elapsed().as_secs_f32());
    if args.run {
        return buildah.doctor(&image, args.seccomp.as_deref());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the release for this machine: the static binary that the image, virtual machines and benches run.
pub fn release() -> Result<PathBuf> {
    build(&of_this_machine())
}

/// Builds the release for an architecture.
pub fn static_binary(arch: Arch) -> Result<PathBuf> {
    build(&Args { arch, ..of_this_machine() })
}

/// Makes the image with this binary; `None` without buildah.
pub fn of_the_release(binary: &Path) -> Result<Option<PathBuf>> {
    if machine::program("buildah").is_none() {
        return Ok(None);
    }
    Ok(Some(Buildah::new().commit(binary, &of_this_machine())?.1))
}

fn of_this_machine() -> Args {
    Args {
        arch: Arch::of_this_machine(),
        name: NAME.into(),
        debug: false,
        binary: None,
        binary_only: false,
        run: false,
        seccomp: None,
    }
}

fn size(path: &Path) -> Result<f64> {
    Ok(path.metadata().with_context(|| path.display().to_string())?.len() as f64 / f64::from(1 << 20))
}

/// Builds the agent with the C library linked in, so that it runs from scratch. glibc's static resolver reads resolv.conf itself.
fn build(args: &Args) -> Result<PathBuf> {
    let (arch, target) = (args.arch, args.arch.target());
    let mut cargo = machine::cargo();
    cargo.args(["rustc", "--locked", "--package", "netpol-trace", "--bin", "netpol-trace"]);
    cargo.args((!args.debug).then_some("--release"));
    let mut folder = machine::target();
    if arch != Arch::of_this_machine() {
        prepare_cross(arch, &mut cargo)?;
        folder.push(target);
    }
    // `cargo rustc` passes these arguments to the last crate only: dependencies are those of `cargo build --release`.
    cargo.args(["--", "-C", "target-feature=+crt-static"]);
    machine::run(&mut cargo)?;
    let built = folder.join(if args.debug { "debug" } else { "release" }).join("netpol-trace");
    let binary = machine::target().join(format!("image/netpol-trace-{arch}"));
    std::fs::create_dir_all(machine::target().join("image"))?;
    std::fs::copy(&built, &binary).with_context(|| built.display().to_string())?;
    Ok(binary)
}

/// Sets the linker, C compiler and standard library of another architecture.
fn prepare_cross(arch: Arch, cargo: &mut Command) -> Result<()> {
    let target = arch.target();
    let family = target.split('-').next().unwrap_or_default();
    if machine::program(arch.compiler()).is_none() {
        bail!(
            "{} is missing: apt-get install gcc-{}-linux-gnu libc6-dev-{arch}-cross",
            arch.compiler(),
            family.replace('_', "-")
        );
    }
    let variable = target.to_uppercase().replace('-', "_");
    cargo.args(["--target", target]);
    cargo.env(format!("CARGO_TARGET_{variable}_LINKER"), arch.compiler());
    cargo.env(format!("CC_{}", target.replace('-', "_")), arch.compiler());
    if let Some(rustc) = compiler_for(target)? {
        cargo.env("RUSTC", rustc);
    }
    Ok(())
}

/// A compiler with the target's standard library: cargo's own (`None`), or the distribution's.
fn compiler_for(target: &str) -> Result<Option<&'static str>> {
    for rustc in [None, Some("/usr/bin/rustc")] {
        let mut command = Command::new(rustc.unwrap_or("rustc"));
        let Ok(sysroot) = machine::output(command.args(["--print", "sysroot"])) else { continue };
        if Path::new(&sysroot).join("lib/rustlib").join(target).join("lib").is_dir() {
            return Ok(rustc);
        }
    }
    bail!(
        "no compiler here has the standard library for {target}: rustup target add {target}, or on Debian dpkg \
         --add-architecture arm64 && apt-get install libstd-rust-web-dev:arm64"
    )
}

/// buildah with its storage below target/, so that the machine's own storage stays as it is.
struct Buildah {
    root: PathBuf,
}

impl Buildah {
    fn new() -> Buildah {
        Buildah { root: machine::target().join("image/storage") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        // vfs works on every file system; the one layer is small.
        command.args(["--storage-driver", "vfs", "--root"]).arg(&self.root);
        command.arg("--runroot").arg(self.root.with_file_name("run")).args(arguments);
        command
    }

    /// Makes the image with the binary and returns its name and archive.
    fn commit(&self, binary: &Path, args: &Args) -> Result<(String, PathBuf)> {
        let version = env!("CARGO_PKG_VERSION");
        let image = format!("{}:{version}", args.name);
        let archive = machine::target().join(format!("image/netpol-trace-{version}-{}.oci.tar", args.arch));
        let container = machine::output(&mut self.command(&["from", "--arch", args.arch.name(), "scratch"]))?;
        let place = binary.to_string_lossy();
        let label = |name: &str, value: &str| format!("org.opencontainers.image.{name}={value}");
        let result = (|| {
            machine::run(&mut self.command(&[
                "copy",
                "--quiet",
                "--chmod",
                "0755",
                &container,
                &place,
                "/netpol-trace",
            ]))?;
            let (title, version) = (label("title", "netpol-trace"), label("version", version));
            let source = label("source", env!("CARGO_PKG_REPOSITORY"));
            let licences = label("licenses", "MIT OR Apache-2.0");
            machine::run(&mut self.command(&[
                "config",
                "--arch",
                args.arch.name(),
                "--entrypoint",
                "[\"/netpol-trace\"]",
                "--cmd",
                "agent",
                "--label",
                &title,
                "--label",
                &version,
                "--label",
                &source,
                "--label",
                &licences,
                &container,
            ]))?;
            machine::run(&mut self.command(&["commit", "--quiet", "--timestamp", "0", &container, &image]))?;
            if archive.exists() {
                std::fs::remove_file(&archive)?;
            }
            let to = format!("oci-archive:{}:{image}", archive.display());
            machine::run(&mut self.command(&["push", "--quiet", &image, &to]))
        })();
        machine::run(&mut self.command(&["rm", &container]))?;
        result.map(|()| (image, archive))
    }

    /// Runs the image's `doctor`, confined as the DaemonSet's container is.
    fn doctor(&self, image: &str, seccomp: Option<&Path>) -> Result<ExitCode> {
        let added: Vec<String> = CAPABILITIES.iter().map(|capability| format!("--cap-add={capability}")).collect();
        let mut arguments = vec!["from", "--cap-drop=all"];
        arguments.extend(added.iter().map(String::as_str));
        let profile = seccomp.map(|path| format!("--security-opt=seccomp={}", path.display()));
        arguments.extend(profile.as_deref());
        arguments.push(image);
        let container = machine::output(&mut self.command(&arguments))?;
        // crun refuses a machine with cgroups v1 and v2 at once.
        let runtime = machine::program("runc").context("no runc: cargo xtask setup installs it")?;
        let mut command = self.command(&["run", "--isolation", "oci", "--runtime"]);
        command.arg(runtime).args([&container, "/netpol-trace", "doctor"]);
        let status = command.status().context("run buildah")?;
        machine::run(&mut self.command(&["rm", &container]))?;
        println!("doctor in the image: {status}");
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
