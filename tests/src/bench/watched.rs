//! The agent at full rate: its lines are counted as they come, not kept.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;
use crate::agent;
use crate::netns::Netns;
use crate::record::Record;

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

/// What was read so far.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// Records of drops in the netns in question.
    pub records: u64,
    /// Packets of these.
    pub packets: u64,
    /// Bytes of all lines.
    pub bytes: u64,
    /// Records that are not drops: statuses, losses.
    pub others: Vec<Record>,
    ended: bool,
}

impl Lines {
    /// Packets in loss records. Losses of the tc hook are not losses of dropped packets and are left out.
    pub fn declared(&self) -> u64 {
        let losses = self.others.iter().filter(|record| record.kind() == "loss" && record.value()["of"].is_null());
        losses.filter_map(|record| record.number("/count")).sum()
    }

    pub fn last_status(&self) -> Option<&Record> {
        self.others.iter().rfind(|record| record.kind() == "status")
    }
}

impl Watched {
    /// Starts `netpol-trace agent` with these arguments and waits until it is attached. Drops in the namespace with this inode
    /// number are counted.
    pub fn start(arguments: &[&str], netns: u32) -> Result<Watched> {
        let mut command = Command::new(agent::binary()?);
        command.arg("agent").args(arguments);
        Watched::spawn(command, netns)
    }

    /// Does the same inside a network namespace, where the tc hook finds the pods' interfaces.
    pub fn start_in(node: &Netns, arguments: &[&str], netns: u32) -> Result<Watched> {
        node.run(|| Watched::start(arguments, netns))
    }

    fn spawn(mut command: Command, netns: u32) -> Result<Watched> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let shared = Arc::new(Shared::default());
        let stdout = child.stdout.take().context("a piped stdout")?;
        let to_reader = shared.clone();
        let reader = std::thread::spawn(move || read(stdout, netns, &to_reader));
        let watched = Watched { child, shared, reader: Some(reader) };
        watched.wait_for("its status `started`", |lines| {
            lines.others.iter().any(|record| record.text("/phase") == "started")
        })?;
        Ok(watched)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn lines(&self) -> Lines {
        self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the counts fulfil a condition.
    pub fn wait_for(&self, what: &str, done: impl Fn(&Lines) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner);
        while !done(&lines) {
            ensure!(!lines.ended, "the agent ended before {what}");
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the agent: no sign of {what} in {PATIENCE:?}");
            lines = self.shared.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Stops the agent as Ctrl-C does and returns the counts.
    pub fn stop(mut self) -> Result<(Lines, ExitStatus)> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        let exit = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| anyhow::anyhow!("the reader of the agent's lines panicked"))?;
        }
        Ok((self.lines(), exit))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Does nothing if the process was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(stdout: impl Read, netns: u32, shared: &Shared) {
    let mut stdout = BufReader::with_capacity(1 << 20, stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = stdout.read_until(b'\n', &mut line).unwrap_or(0);
        let mut lines = shared.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.bytes += read as u64;
        let text = std::str::from_utf8(&line).unwrap_or_default();
        if read == 0 {
            lines.ended = true;
        } else if !text.contains("\"kind\":\"drop\"") {
            lines.others.extend(Record::parse(text).ok());
        } else if is_of(text, netns) {
            lines.records += 1;
            lines.packets += number(text, "\"count\":").unwrap_or(1);
            continue;
        }
        drop(lines);
        shared.changed.notify_all();
        if read == 0 {
            return;
        }
    }
}

/// True if a drop is of this network namespace, or is an aggregate over several namespaces of the lab.
fn is_of(line: &str, netns: u32) -> bool {
    match number(line, "\"netns\":") {
        Some(inode) => inode == u64::from(netns),
        None => line.contains("\"namespace\":\"lab\""),
    }
}

/// Reads a number of a drop without parsing the line, which would keep a second core busy.
fn number(line: &str, key: &str) -> Option<u64> {
    let (_, rest) = line.split_once(key)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
