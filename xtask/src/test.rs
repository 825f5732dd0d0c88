//! `cargo xtask test`: everything that must hold before a change goes in.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::report::{Steps, Tally, count};
use crate::setup::{self, Need};
use crate::toolchain::{self, Kind};
use crate::{image, machine, vm};

/// Format, lints, licences, all tests, the lab on this kernel (as root) and boots of two other kernels.
///
/// A step that fails doesn't hide the others. What this machine can't run is skipped, with the reason. The last line
/// is `N passed, N failed, N skipped`; the exit code is 0 when nothing failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tests whose names contain this; lints and virtual machines are left out
    filter: Option<String>,
    /// Leave out the virtual machine
    #[arg(long)]
    no_vm: bool,
}

/// The time limit of a test program.
const TEST_LIMIT_SECONDS: &str = "900";
/// The kernels that `cargo xtask test` boots, with filters for the tests to run there. `cargo xtask vm` runs all tests on more kernels.
///
/// 6.1 has no call site of nftables' own and no TCX: drops are recorded with tuple, reason and the enforcer's own count, rejects are
/// recorded as such, and the next start removes a killed agent's filter. On 6.12 rejects are recorded too, modules are loaded late, and
/// there is what few machines' own kernels have: netkit, Open vSwitch and SCTP.
const VM_TESTS: [(&str, &[&str]); 2] = [
    (
        "6.1",
        &[
            "demo::",
            "packets::",
            "hooks::",
            "lifecycle::nothing_stays_attached",
            "beside_reject",
            "a_killed_agent_leaves_nothing_that_acts",
        ],
    ),
    (
        "6.12",
        &[
            "late_modules",
            "beside_drop",
            "reset_elsewhere",
            "queues::verdict_drop",
            "netkit_from_a_pod",
            "ovs_beside_kube_proxy",
            "sctp_init_dropped",
        ],
    ),
];

pub fn run(args: &Args) -> Result<ExitCode> {
    let whole = args.filter.is_none();
    let mut steps = Steps::new(whole);
    steps.step("setup", || {
        setup::ensure(&[Need::Build, Need::Lab, Need::Lint, Need::Consumers, Need::Image, Need::Runtime])
            .map(|()| Tally::passed())
    });
    if whole {
        // Without Go each test that needs these programs is skipped.
        steps.step("control plane and enforcers of the cluster tests", || match setup::no_go() {
            Some(why) => Ok(Tally::skipped("cluster programs", why)),
            None => setup::ensure(&[Need::Cluster]).map(|()| Tally::passed()),
        });
        steps.step("format", format);
        steps.step("clippy", || {
            let lints = ["--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
            machine::run(machine::cargo().arg("clippy").args(lints)).map(|()| Tally::passed())
        });
        steps.step("clippy, eBPF", clippy_ebpf);
        steps.step("licences and sources of dependencies", deny);
    }
    let mut programs = Vec::new();
    steps.step("build of the agent and the tests", || {
        programs = build()?;
        Ok(Tally::passed())
    });
    let (mut release, mut image) = (None, None);
    if whole {
        steps.step("release build", || {
            release = Some(image::release()?);
            Ok(Tally::passed())
        });
        if let Some(release) = &release {
            steps.step("image", || {
                image = image::of_the_release(release)?;
                Ok(if image.is_some() { Tally::passed() } else { Tally::skipped("image", "no buildah here") })
            });
        }
    }
    for program in &programs {
        steps.step(&program.name, || program.run(args.filter.as_deref(), image.as_deref()));
    }
    if whole {
        steps.step("documentation's examples", || {
            count("doc", machine::cargo().args(["test", "--workspace", "--locked", "--doc", "--quiet"]))
        });
    }
    if let Some(release) = release.filter(|_| !args.no_vm) {
        for (kernel, tests) in VM_TESTS {
            vm::step(&mut steps, kernel, &release, &programs, tests);
        }
    }
    Ok(steps.finish())
}

fn format() -> Result<Tally> {
    machine::run(machine::cargo().args(["fmt", "--all", "--check"]))?;
    machine::run(machine::cargo().args(["fmt", "--check", "--manifest-path"]).arg(ebpf_manifest()))?;
    Ok(Tally::passed())
}

pub fn ebpf_manifest() -> PathBuf {
    machine::root().join("netpol-trace-ebpf/Cargo.toml")
}

/// The eBPF crate under the clippy of the compiler that builds it.
fn clippy_ebpf() -> Result<Tally> {
    let found = toolchain::find().map_err(anyhow::Error::msg)?;
    let target = machine::root().join("netpol-trace-ebpf/target/clippy");
    let mut command = match &found.kind {
        Kind::Debian { rustc } => {
            let driver = rustc.with_file_name("clippy-driver");
            if !driver.exists() {
                let why = format!("no {}: apt-get install rust-web-clippy", driver.display());
                return Ok(Tally::skipped("clippy, eBPF", why));
            }
            // `cargo clippy` would take rustup's driver, which can't read the other compiler's `core`. This does what
            // `cargo clippy` does inside; the separator in CLIPPY_ARGS is clippy's own.
            let mut command = toolchain::cargo_command(&found, "check", &ebpf_manifest(), &target);
            command.env("RUSTC_WORKSPACE_WRAPPER", driver);
            command.env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
            command
        }
        Kind::Nightly { .. } => {
            let mut command = toolchain::cargo_command(&found, "clippy", &ebpf_manifest(), &target);
            command.args(["--", "-D", "warnings"]);
            command
        }
    };
    machine::run(command.stdin(Stdio::null())).map(|()| Tally::passed())
}

/// Runs cargo-deny on both lock files. Advisories come from a Git repository that not every machine can reach.
fn deny() -> Result<Tally> {
    let Some(program) = setup::cargo_deny() else {
        return Ok(Tally::skipped("licences", "no cargo-deny: cargo xtask setup builds it"));
    };
    let deny = |manifest: &Path, what: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--locked", "--manifest-path"]).arg(manifest).arg("--config");
        command.arg(machine::root().join("deny.toml")).arg("check").args(what).stdin(Stdio::null());
        command
    };
    let mut tally = Tally::default();
    for manifest in [machine::root().join("Cargo.toml"), ebpf_manifest()] {
        machine::run(&mut deny(&manifest, &["bans", "licenses", "sources"]))?;
        tally.add(Tally::passed());
        let advisories = deny(&manifest, &["advisories"]).output()?;
        let text = String::from_utf8_lossy(&advisories.stderr);
        tally.add(if advisories.status.success() {
            Tally::passed()
        } else if text.contains("failed to fetch advisory database") {
            Tally::skipped("advisories", "the RustSec advisory database can't be reached from here")
        } else {
            println!("{text}");
            Tally::failed()
        });
    }
    Ok(tally)
}

/// A test program that cargo built.
#[derive(Debug)]
pub struct TestProgram {
    /// Package and target.
    pub name: String,
    /// The target's name alone.
    pub target: String,
    pub path: PathBuf,
    /// The package's folder, which `cargo test` makes the working directory.
    package: PathBuf,
}

impl TestProgram {
    /// Runs the tests. Those in containers use `image`.
    fn run(&self, filter: Option<&str>, image: Option<&Path>) -> Result<Tally> {
        // `timeout` is in coreutils.
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "10", TEST_LIMIT_SECONDS]).arg(&self.path).args(filter);
        command
            .env("NETPOL_TRACE_BIN", machine::agent())
            .env("CARGO_MANIFEST_DIR", &self.package)
            .envs(image.map(|image| ("NETPOL_TRACE_IMAGE", image)))
            .current_dir(&self.package)
            .stdin(Stdio::null());
        count(&self.target, &mut command)
    }
}

/// Builds the agent and every test program. The caller runs them one by one, so that each has its own line and time and can be copied
/// into a virtual machine.
pub fn build() -> Result<Vec<TestProgram>> {
    machine::run(machine::cargo().args(["build", "--workspace", "--locked"]))?;
    let mut command = machine::cargo();
    command.args(["test", "--workspace", "--locked", "--no-run", "--message-format", "json-render-diagnostics"]);
    let messages = machine::output(&mut command)?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).with_context(|| format!("cargo's message: {line}"))?;
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
        if message["profile"]["test"] != true {
            continue;
        }
        let (Some(path), Some(manifest), Some(target)) =
            (text("/executable"), text("/manifest_path"), text("/target/name"))
        else {
            continue;
        };
        let package = Path::new(manifest).parent().unwrap_or(Path::new("/")).to_owned();
        let kind = text("/target/kind/0").unwrap_or("test");
        let package_name = package.file_name().unwrap_or_default().to_string_lossy();
        let name = if kind == "test" {
            format!("{package_name}: {target}")
        } else {
            format!("{package_name}: {kind} {target}")
        };
        programs.push(TestProgram { name, target: target.to_owned(), path: path.into(), package });
    }
    if programs.is_empty() {
        bail!("cargo built no test programs");
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}
