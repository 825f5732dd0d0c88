//! A network namespace without a name.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A file descriptor of the namespace, which ends with this and the last socket and process in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    inode: u32,
}

impl Netns {
    /// Makes a new, empty namespace. `name` is only for messages.
    pub fn new(name: impl Into<String>) -> Result<Netns> {
        let name = name.into();
        let file = thread::scope(|scope| {
            let maker = scope.spawn(|| -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
                Ok(File::open("/proc/thread-self/ns/net")?)
            });
            maker.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        let inode = u32::try_from(file.metadata()?.ino())?;
        Ok(Netns { name, file, inode })
    }

    /// Duplicates the descriptor.
    pub fn try_clone(&self) -> Result<Netns> {
        Ok(Netns { name: self.name.clone(), file: self.file.try_clone()?, inode: self.inode })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inode number, which records have as `kernel.netns`.
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// A path that other processes can open, while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` inside the namespace, on a thread of its own. Sockets made there stay in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("root enters a namespace of its own");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs a program inside the namespace to its end, with `input` on stdin. An error has its stderr.
    pub fn command(&self, program: &str, args: &[&str], input: &str) -> Result<Output> {
        let output = self.run(|| -> Result<Output> {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {program}"))?;
            // These programs print less than the pipe holds. One that ends early says why on stderr.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
            Ok(child.wait_with_output()?)
        })?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {} in {}: {}: {}", args.join(" "), self.name, output.status, stderr.trim());
        }
        Ok(output)
    }

    /// Runs `ip -batch` with these lines.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.command("ip", &["-batch", "-"], lines).map(drop).with_context(|| format!("ip commands were:\n{lines}"))
    }

    /// Sets `/proc/sys/net/…` of this namespace.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| std::fs::write(&path, value)).with_context(|| format!("write {value} to {path} in {}", self.name))
    }
}
