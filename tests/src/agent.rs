//! Runs the agent's binary and reads its lines on stdout as they come.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;
use crate::netns::Netns;
use crate::record::Record;

/// Overrides where the agent's binary is, for machines without cargo.
pub const BINARY: &str = "NETPOL_TRACE_BIN";

/// Options with which counts of repeated packets are written soon.
pub const SOON: [&str; 2] = ["--aggregation-window", "1s"];

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    pid: Pid,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

/// The records, stderr and exit status of one run.
#[derive(Debug)]
pub struct Run {
    pub records: Vec<Record>,
    pub stderr: String,
    pub exit: ExitStatus,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    records: Vec<Record>,
    /// Errors of lines on stdout that are not records.
    broken: Vec<String>,
    stderr: String,
    exit: Option<ExitStatus>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `done` returns something; `None` after [`PATIENCE`].
    fn wait(&self, mut done: impl FnMut(&Seen) -> bool) -> Option<MutexGuard<'_, Seen>> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.lock();
        while !done(&seen) {
            let left = deadline.checked_duration_since(Instant::now())?;
            seen = self.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(seen)
    }
}

impl Agent {
    /// Starts `netpol-trace agent` with these arguments and waits until its hooks are attached and its sources in sync.
    pub fn start<S: AsRef<str>>(arguments: &[S]) -> Result<Agent> {
        let mut command = Command::new(binary()?);
        command.arg("agent").args(arguments.iter().map(AsRef::as_ref));
        if !arguments.iter().any(|argument| argument.as_ref() == "--aggregation-window") {
            command.args(SOON);
        }
        let agent = Agent::spawn(command)?;
        agent.wait_for("its status `started`", |records| records.iter().any(|r| r.text("/phase") == "started"))?;
        Ok(agent)
    }

    /// Does the same inside a network namespace: the tc hook watches the interfaces of the agent's own.
    pub fn start_in<S: AsRef<str> + Sync>(netns: &Netns, arguments: &[S]) -> Result<Agent> {
        netns.run(|| Agent::start(arguments))
    }

    /// Starts a command that becomes the agent. Does not wait.
    pub fn spawn(mut command: Command) -> Result<Agent> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // So that a panic shows where it is.
            .env("RUST_BACKTRACE", "1")
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let shared = Arc::new(Shared::default());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let to_records = Arc::clone(&shared);
        let to_log = Arc::clone(&shared);
        let to_exit = Arc::clone(&shared);
        let readers = vec![
            thread::spawn(move || stdout.into_iter().for_each(|stdout| read_records(stdout, &to_records))),
            thread::spawn(move || stderr.into_iter().for_each(|stderr| read_log(stderr, &to_log))),
            thread::spawn(move || {
                let exit = child.wait().expect("a child that nobody else waits for");
                to_exit.update(|seen| seen.exit = Some(exit));
            }),
        ];
        Ok(Agent { pid, shared, readers })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits until the records so far fulfil a condition. The error says what was expected and what came instead.
    pub fn wait_for(&self, what: &str, mut done: impl FnMut(&[Record]) -> bool) -> Result<()> {
        let seen = self.shared.wait(|seen| done(&seen.records) || seen.exit.is_some());
        match seen {
            Some(seen) if done(&seen.records) => Ok(()),
            Some(seen) => bail!("the agent ended before {what}: {:?}, stderr:\n{}", seen.exit, seen.stderr),
            None => {
                let seen = self.shared.lock();
                // On a noisy host there are many drops: show all other records, and the last few drops.
                let count = seen.records.len();
                let few = seen.records.iter().enumerate().filter(|(n, record)| !record.is_drop() || n + 10 > count);
                let few: String = few.map(|(_, record)| format!("{record}\n")).collect();
                bail!(
                    "the agent: no sign of {what} in {PATIENCE:?}; of {count} records:\n{few}stderr:\n{}",
                    seen.stderr
                )
            }
        }
    }

    /// The records so far.
    pub fn records(&self) -> Vec<Record> {
        self.shared.lock().records.clone()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("{signal} to the agent"))
    }

    /// Stops the agent as Ctrl-C does and returns its output.
    pub fn stop(self) -> Result<Run> {
        self.signal(Signal::SIGINT)?;
        self.finish()
    }

    /// Waits for the agent's end and returns its output. A line on stdout that is not a record is an error.
    pub fn finish(mut self) -> Result<Run> {
        if self.shared.wait(|seen| seen.exit.is_some()).is_none() {
            bail!("the agent did not end within {PATIENCE:?}; stderr:\n{}", self.shared.lock().stderr);
        }
        for reader in self.readers.drain(..) {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let seen = std::mem::take(&mut *self.shared.lock());
        if let Some(line) = seen.broken.first() {
            bail!("the agent printed a line that is no record: {line}\nstderr:\n{}", seen.stderr);
        }
        let exit = seen.exit.context("an exit status was seen")?;
        Ok(Run { records: seen.records, stderr: seen.stderr, exit })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // `readers` is empty once `finish` has waited for the process, whose id may be another's by then.
        if !self.readers.is_empty() && self.shared.lock().exit.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

fn read_records(stdout: impl Read, shared: &Shared) {
    for line in BufReader::new(stdout).lines() {
        let parsed = line.map_err(anyhow::Error::from).and_then(|line| Record::parse(&line));
        shared.update(|seen| match parsed {
            Ok(record) => seen.records.push(record),
            Err(error) => seen.broken.push(format!("{error:#}")),
        });
    }
}

fn read_log(stderr: impl Read, shared: &Shared) {
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        shared.update(|seen| {
            seen.stderr.push_str(&String::from_utf8_lossy(&line));
            seen.stderr.push('\n');
        });
    }
}

/// The agent's binary: the one that [`BINARY`] names, else the one beside this program, which cargo builds first.
pub fn binary() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| find_binary().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let profile = own.ancestors().skip(1).find(|dir| !dir.ends_with("deps")).context("a folder of this program")?;
    let path = profile.join("netpol-trace");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        // With the features of the whole workspace, as other commands build it: nothing is built twice.
        build.args(["build", "--quiet", "--workspace", "--bin", "netpol-trace"]);
        build.args(profile.ends_with("release").then_some("--release"));
        // `cargo test` sets these for a test. ring's build script depends on them: it and its dependents would be rebuilt here,
        // and again by the next command.
        let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
            build.env_remove(name);
        }
        let output = build.current_dir(env!("CARGO_MANIFEST_DIR")).output().context("run cargo")?;
        if !output.status.success() {
            bail!("the agent does not build:\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    if !path.is_file() {
        bail!("no agent at {}: cargo build --workspace, or set {BINARY}", path.display());
    }
    Ok(path)
}
