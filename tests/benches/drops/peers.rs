//! Programs that report drops, the agent among them, each started as a user would start it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use netpol_trace_tests::bench::process;
use netpol_trace_tests::bench::watched::Watched;
use netpol_trace_tests::pair::Pair;
use netpol_trace_tests::{PATIENCE, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::flood::watch;

/// A program that reports drops.
pub struct Watcher {
    pub name: &'static str,
    process: Process,
}

enum Process {
    Agent(Watched),
    /// A process, with the file of its lines if it writes one per packet.
    Peer {
        child: Child,
        folder: TempDir,
        lines: Option<&'static str>,
    },
}

/// The name of a program that is not available here, and why.
pub type Absent = (&'static str, String);

pub type Start = fn(&Pair) -> Result<Result<Watcher, Absent>>;

/// The watchers that attach BPF programs.
pub const PROGRAMS: [Start; 4] = [agent, bpftrace_counts, bpftrace_prints, tcpdrop];

/// The packets that a watcher reported; `None` if it does not report them.
#[derive(Debug, Default)]
pub struct Reported {
    pub packets: Option<u64>,
    pub declared: Option<u64>,
}

impl Watcher {
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Agent(agent) => agent.pid(),
            Process::Peer { child, .. } => child.id(),
        }
    }

    /// Stops it as Ctrl-C does.
    pub fn stop(self) -> Result<Reported> {
        match self.process {
            Process::Agent(agent) => {
                let (lines, _) = agent.stop()?;
                Ok(Reported { packets: Some(lines.packets), declared: Some(lines.declared()) })
            }
            Process::Peer { mut child, folder, lines } => {
                kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
                let ended = eventually("a peer's end", || Ok(child.try_wait()?));
                if ended.is_err() {
                    child.kill()?;
                    child.wait()?;
                }
                let count = |file| count_lines(&folder.path().join(file));
                Ok(Reported { packets: lines.map(count).transpose()?, declared: None })
            }
        }
    }
}

pub fn agent(pair: &Pair) -> Result<Result<Watcher, Absent>> {
    Ok(Ok(Watcher { name: "netpol-trace agent", process: Process::Agent(watch(pair)?) }))
}

pub fn bpftrace_counts(_: &Pair) -> Result<Result<Watcher, Absent>> {
    bpftrace("bpftrace, count by reason, place", "{ @[args->reason, args->location] = count(); }", None)
}

pub fn bpftrace_prints(_: &Pair) -> Result<Result<Watcher, Absent>> {
    let action = "{ printf(\"%llu %s %d %s\\n\", nsecs, comm, args->reason, ksym(args->location)); }";
    bpftrace("bpftrace, a line for each", action, Some("out"))
}

fn bpftrace(name: &'static str, action: &str, lines: Option<&'static str>) -> Result<Result<Watcher, Absent>> {
    traced(name, &format!("exec bpftrace -B full -e 'tracepoint:skb:kfree_skb {action}'"), lines)
}

pub fn tcpdrop(_: &Pair) -> Result<Result<Watcher, Absent>> {
    let name = "bcc's tcpdrop";
    let program = packages().join("usr/sbin/tcpdrop-bpfcc");
    if !program.exists() {
        return Ok(Err((name, format!("no {}", program.display()))));
    }
    let python = packages().join("usr/lib/python3/dist-packages");
    traced(name, &format!("exec env PYTHONPATH={} python3 {}", python.display(), program.display()), Some("out"))
}

/// The folder into which `cargo xtask bench` has unpacked Debian's packages of the peers, else `/`.
fn packages() -> PathBuf {
    std::env::var_os("NETPOL_TRACE_PEERS").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// Starts a peer in a mount namespace with tracefs, which not every machine mounts.
fn traced(name: &'static str, command: &str, lines: Option<&'static str>) -> Result<Result<Watcher, Absent>> {
    let mount = |kind, at| format!("mountpoint -q {at} || mount -t {kind} none {at}; ");
    let (tracefs, debugfs) = (mount("tracefs", "/sys/kernel/tracing"), mount("debugfs", "/sys/kernel/debug"));
    let script = format!("{tracefs}{debugfs}{command}");
    let command = ["unshare", "--mount", "sh", "-c", &script];
    let has_programs = |pid| process::programs(pid).is_ok_and(|count| count > 0);
    peer(name, &command, tempfile::tempdir()?, lines, has_programs)
}

/// nftables' log, read by ulogd in the node's network namespace and written as lines of text.
pub fn ulogd(pair: &Pair) -> Result<Result<Watcher, Absent>> {
    let name = "nft log, ulogd";
    let root = packages();
    let (program, library) =
        (root.join("usr/sbin/ulogd"), root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)));
    if !program.exists() {
        return Ok(Err((name, format!("no {}", program.display()))));
    }
    let folder = tempfile::tempdir()?;
    let plugin = |plugin: &str| format!("plugin=\"{}/ulogd/ulogd_{plugin}.so\"\n", library.display());
    let plugins: String =
        ["inppkt_NFLOG", "raw2packet_BASE", "filter_IFINDEX", "filter_IP2STR", "filter_PRINTPKT", "output_LOGEMU"]
            .map(plugin)
            .concat();
    let (log, out) = (folder.path().join("log"), folder.path().join("lines"));
    let configuration = format!(
        "[global]\nlogfile=\"{}\"\nloglevel=3\n{plugins}\
         stack=log1:NFLOG,base1:BASE,ifi1:IFINDEX,ip2str1:IP2STR,print1:PRINTPKT,emu1:LOGEMU\n\
         [log1]\ngroup=5\n[emu1]\nfile=\"{}\"\nsync=0\n",
        log.display(),
        out.display()
    );
    let path = folder.path().join("ulogd.conf");
    std::fs::write(&path, configuration)?;
    let library = format!("LD_LIBRARY_PATH={}", library.display());
    let net = format!("--net={}", pair.lab.node().path());
    let (program, path) = (program.to_string_lossy(), path.to_string_lossy());
    let command = ["nsenter", &net, "env", &library, &*program, "-c", &*path];
    peer(name, &command, folder, Some("lines"), move |_| out.exists())
}

/// Starts a peer and waits until it is `ready`. Its standard output goes to `out` in its folder.
fn peer(
    name: &'static str,
    command: &[&str],
    folder: TempDir,
    lines: Option<&'static str>,
    ready: impl Fn(u32) -> bool,
) -> Result<Result<Watcher, Absent>> {
    let stdout = File::create(folder.path().join("out"))?;
    // It ends with this process.
    let mut command_line = Command::new("setpriv");
    command_line.args(["--pdeathsig", "KILL"]).args(command);
    command_line.stdin(Stdio::null()).stdout(stdout).stderr(File::create(folder.path().join("stderr"))?);
    let mut child = command_line.spawn().context("start setpriv (util-linux)")?;
    let started = eventually(name, || {
        let ended = child.try_wait()?.is_some();
        Ok((ended || ready(child.id())).then_some(!ended))
    });
    if matches!(started, Ok(true)) {
        return Ok(Ok(Watcher { name, process: Process::Peer { child, folder, lines } }));
    }
    let _ = child.kill();
    let _ = child.wait();
    let mut messages = String::new();
    File::open(folder.path().join("stderr"))?.read_to_string(&mut messages)?;
    // The first line that is not empty; a stack trace follows.
    let why = messages.lines().find(|line| !line.trim().is_empty() && !line.contains("RLIMIT"));
    Ok(Err((name, why.map_or_else(|| format!("not ready within {PATIENCE:?}"), str::to_owned))))
}

fn count_lines(path: &Path) -> Result<u64> {
    Ok(BufReader::new(File::open(path)?).split(b'\n').count() as u64)
}
