//! Programs in the background. They end with this program, or stay and can be stopped later by their process ids.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;
use crate::netns::Netns;

/// How long a program in the background lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is killed when this program ends.
    OfThisProgram,
    /// Until it is stopped.
    Detached,
}

/// A program in the background, whose output goes to a file.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    pid: Pid,
    /// When the kernel started it. A process that gets the same id later has another start time.
    started: u64,
    log: PathBuf,
    lifetime: Lifetime,
}

impl Daemon {
    /// Starts `program` in this network namespace, or in another. stdout and stderr go to `log`.
    pub fn start(
        program: &Path,
        arguments: &[String],
        log: &Path,
        lifetime: Lifetime,
        netns: Option<&Netns>,
    ) -> Result<Daemon> {
        Daemon::start_with(program, arguments, log, lifetime, netns, &[])
    }

    /// Does the same with environment variables.
    pub fn start_with(
        program: &Path,
        arguments: &[String],
        log: &Path,
        lifetime: Lifetime,
        netns: Option<&Netns>,
        environment: &[(&str, String)],
    ) -> Result<Daemon> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut words: Vec<String> = Vec::new();
        if let Some(netns) = netns {
            words.extend(["nsenter".into(), format!("--net={}", netns.path()), "--".into()]);
        }
        if lifetime == Lifetime::OfThisProgram {
            words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(String::from));
        }
        words.push(program.to_string_lossy().into_owned());
        words.extend(arguments.iter().cloned());
        let mut command = Command::new(&words[0]);
        let output = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        command.args(&words[1..]).envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // So that Ctrl-C at a terminal does not stop it.
        command.process_group(0);
        let pid = match lifetime {
            Lifetime::OfThisProgram => spawn_on_lasting_thread(command),
            Lifetime::Detached => command.spawn().map(|child| child.id()),
        };
        let pid = pid.with_context(|| format!("start {name}"))?;
        let started = started(pid).with_context(|| format!("{name} ended at once"))?;
        Ok(Daemon { name, pid: Pid::from_raw(i32::try_from(pid)?), started, log: log.to_owned(), lifetime })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Seconds of processor time, user and system.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = stat(self.pid())?;
        let ticks: u64 = stat.iter().skip(UTIME).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        // USER_HZ, which is 100 on every machine that this runs on.
        Ok(ticks as f64 / 100.0)
    }

    /// Fails with the end of the log if the program has ended.
    pub fn check(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(12).collect();
        let last: String = lines.iter().rev().map(|line| format!("\n  {line}")).collect();
        bail!("{} has ended; the end of its log ({}):{last}", self.name, self.log.display())
    }

    pub fn is_alive(&self) -> bool {
        started(self.pid()).is_ok_and(|started| started == self.started)
    }

    /// Stops it with SIGTERM, then with SIGKILL.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if eventually("its end", || Ok((!self.is_alive()).then_some(()))).is_err() {
            self.kill()?;
        }
        Ok(())
    }

    /// Kills it and waits for its end.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        eventually(&format!("the end of {}", self.name), || Ok((!self.is_alive()).then_some(())))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(self.pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{signal} to {} ({})", self.name, self.pid)),
        }
    }

    /// The line that [`Daemon::parse`] reads.
    pub fn line(&self) -> String {
        format!("{} {} {} {}\n", self.name, self.pid, self.started, self.log.display())
    }

    pub fn parse(line: &str) -> Result<Daemon> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().with_context(|| format!("not `name pid start log`: {line:?}"));
        let (name, pid, started, log) = (word()?.to_owned(), word()?.parse()?, word()?.parse()?, word()?.into());
        Ok(Daemon { name, pid: Pid::from_raw(pid), started, log, lifetime: Lifetime::Detached })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::OfThisProgram {
            let _ = self.signal(Signal::SIGKILL);
        }
    }
}

/// Fields of /proc/PID/stat, counted from the one after the name in parentheses.
const STATE: usize = 0;
const UTIME: usize = 11;
const THREADS: usize = 17;
const STARTTIME: usize = 19;

fn stat(pid: u32) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").context("/proc/PID/stat has a name in parentheses")?;
    Ok(fields.split(' ').map(str::to_owned).collect())
}

/// The start time of a living process.
fn started(pid: u32) -> Result<u64> {
    let stat = stat(pid)?;
    // A killed process is a zombie as soon as its first thread is. Its sockets last as long as its other threads.
    let last = stat.get(THREADS).is_some_and(|threads| threads == "1");
    if last && stat.get(STATE).is_some_and(|state| state == "Z") {
        bail!("process {pid} has ended");
    }
    Ok(stat.get(STARTTIME).context("/proc/PID/stat has a start time")?.parse()?)
}

/// Starts children on a thread that lasts as long as the program, because the kernel sends the parent-death signal when the *thread* that
/// started the child ends. The thread also waits for children that have ended.
fn spawn_on_lasting_thread(command: Command) -> std::io::Result<u32> {
    type Answer = std::io::Result<u32>;
    type Request = (Command, mpsc::Sender<Answer>);
    static THREAD: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let requests = THREAD.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                let spawned = command.spawn().map(|mut child| {
                    let pid = child.id();
                    thread::spawn(move || child.wait());
                    pid
                });
                // The caller waits for the answer.
                let _ = answer.send(spawned);
            }
        });
        Mutex::new(sender)
    });
    let (answer, wait) = mpsc::channel();
    let sent = requests.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    sent.map_err(std::io::Error::other)?;
    wait.recv().map_err(std::io::Error::other)?
}
