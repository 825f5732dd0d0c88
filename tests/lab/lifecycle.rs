//! Start and end of the agent: what stays in the kernel, and exit codes and messages.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::{bpf, can_run_lab, eventually, has_program, require, traffic};
use nix::sys::signal::Signal;

/// After every signal, SIGKILL included, its programs and links are gone.
#[test]
fn nothing_stays_attached() -> Result<()> {
    require!(can_run_lab());
    require!(has_program("bpftool", "bpftool"));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let pair = Pair::start(DENY)?;
        let agent = pair.watch()?;
        let objects = bpf::objects(agent.pid())?;
        assert!(objects.iter().any(|(kind, _)| *kind == "prog"), "the running agent holds no BPF program: {objects:?}");
        agent.signal(signal)?;
        let run = agent.finish()?;
        if signal == Signal::SIGKILL {
            assert!(!run.exit.success());
        } else {
            run.balance()?;
        }
        // The kernel frees them after a grace period.
        eventually("the agent's BPF objects are gone", || {
            Ok(objects.iter().all(|(kind, id)| !bpf::exists(kind, id)).then_some(()))
        })
        .with_context(|| format!("after {signal}: {objects:?}"))?;
    }
    Ok(())
}

/// `netpol-trace agent | head -n 1`: the agent ends without a message when its reader does.
#[test]
fn a_closed_stdout_ends_it_quietly() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let mut agent = Command::new(agent::binary()?)
        .arg("agent")
        .arg("--manifests")
        .arg(pair.manifests())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("RUST_BACKTRACE", "1")
        .spawn()?;
    let mut first = String::new();
    let mut stdout = BufReader::new(agent.stdout.take().context("a pipe")?);
    stdout.read_line(&mut first)?;
    assert!(first.contains("\"started\""), "{first}");
    drop(stdout);
    // The next record gets EPIPE.
    let ended = eventually("the agent ends", || {
        traffic::udp(&pair.client()?.netns, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
        Ok(agent.try_wait()?)
    });
    if ended.is_err() {
        agent.kill()?;
    }
    let mut stderr = String::new();
    agent.stderr.take().context("a pipe")?.read_to_string(&mut stderr)?;
    assert_eq!(ended?.code(), Some(0), "{stderr}");
    quiet(&stderr);
    Ok(())
}

/// `--duration` ends the agent, with correct packet accounting.
#[test]
fn duration() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let agent = Agent::start(&["--duration", "1s", "--manifests", &pair.manifests().to_string_lossy()])?;
    traffic::udp(&pair.client()?.netns, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
    let run = agent.finish()?;
    run.balance()?;
    run.account_for("denied", pair.counted("denied")?, &pair.netfilter_drops(&run))
}

/// `--output` puts the records in a file, and nothing on stdout.
#[test]
fn output_file() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let path = pair.manifests().with_extension("jsonl");
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let output = path.to_string_lossy().into_owned();
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--duration", "1s", "--manifests", &manifests, "--output", &output]);
    let run = Agent::spawn(command)?.finish()?;
    assert!(run.exit.success(), "{}", run.stderr);
    assert_eq!(run.records, []);
    let lines = std::fs::read_to_string(&path)?;
    std::fs::remove_file(&path)?;
    assert!(lines.lines().next().is_some_and(|line| line.contains("\"started\"")), "{lines}");
    assert!(lines.lines().last().is_some_and(|line| line.contains("\"stopped\"")), "{lines}");
    Ok(())
}

/// Without the capabilities: one clear message and an exit code, no backtrace.
#[test]
fn no_permission() -> Result<()> {
    const NOBODY: u32 = 65534;
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    std::fs::set_permissions(pair.manifests(), PermissionsExt::from_mode(0o755))?;
    let folder = tempfile::tempdir()?;
    let mut binary = agent::binary()?;
    if !open_to_all(&binary)? {
        // The build's folder may be root's alone.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
        binary = folder.path().join("netpol-trace");
        std::fs::copy(agent::binary()?, &binary)?;
    }
    let mut command = Command::new(&binary);
    command.arg("agent").arg("--manifests").arg(pair.manifests()).uid(NOBODY).gid(NOBODY).current_dir("/");
    let run = Agent::spawn(command)?.finish()?;
    assert!(run.exit.code().is_some_and(|code| code > 0), "{:?}", run.exit);
    assert!(run.records.iter().all(|record| record.text("/phase") != "started"), "{:?}", run.records);
    let named = ["CAP_BPF", "CAP_PERFMON", "root", "permission", "Permission"];
    assert!(named.iter().any(|word| run.stderr.contains(word)), "{}", run.stderr);
    quiet(&run.stderr);
    Ok(())
}

/// True if every user can reach and run a program.
fn open_to_all(program: &Path) -> Result<bool> {
    for path in std::fs::canonicalize(program)?.ancestors() {
        if path.metadata()?.permissions().mode() & 0o001 == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// No panic and no backtrace, though `RUST_BACKTRACE` asks for one.
pub fn quiet(stderr: &str) {
    for sign in ["panicked", "stack backtrace", "Stack backtrace", "Broken pipe", "RUST_BACKTRACE"] {
        assert!(!stderr.contains(sign), "{stderr}");
    }
    assert!(stderr.lines().count() < 20, "too much to find the message in:\n{stderr}");
}
