//! `--survive-restart`: counts, unread records and the hook stay in the kernel between two agents of the same version and
//! options. Any other agent removes them and declares it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result};
use netpol_trace_tests::accounting::imbalances;
use netpol_trace_tests::agent::{self, Agent, Run};
use netpol_trace_tests::bpf_fs::BpfFs;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::{Record, drops, packets};
use netpol_trace_tests::{can_run_lab, eventually, require, traffic};
use nix::sys::signal::Signal;

use super::aggregation::{flood, own};
use super::privileges::{BPF, PERFMON, SYSLOG, can_confine, confined};

/// Where the agents of a test pin their maps and hooks.
struct Pins(BpfFs);

impl Pins {
    fn mount() -> Result<Pins> {
        BpfFs::mount().map(Pins)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("netpol-trace")
    }

    /// The folders of agents, one for each version and set of options, and whether each has a hook.
    fn left(&self) -> Result<Vec<(PathBuf, bool)>> {
        let Ok(entries) = fs::read_dir(self.folder()) else { return Ok(Vec::new()) };
        let of_agent = |entry: io::Result<fs::DirEntry>| -> Result<_> {
            let folder = entry?.path();
            let names: io::Result<Vec<_>> = fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name())).collect();
            let has_hook = names?.iter().any(|name| name.to_string_lossy().starts_with("link-"));
            Ok((folder, has_hook))
        };
        entries.map(of_agent).collect()
    }
}

/// An agent that survives a restart, with a window that does not end while the test runs, and more options.
fn surviving(pins: &Pins, pair: &Pair, more: &[&str]) -> Result<Agent> {
    start(pins, pair, &[&["--survive-restart", "--aggregation-window", "5m"], more].concat())
}

fn start(pins: &Pins, pair: &Pair, options: &[&str]) -> Result<Agent> {
    let (pins, manifests) = (pins.folder(), pair.manifests());
    let (pins, manifests) = (pins.to_string_lossy(), manifests.to_string_lossy());
    let always = ["--pin-dir", &pins, "--max-records-per-second", "0", "--manifests", &manifests];
    Agent::start(&[&always, options].concat())
}

/// Packets in the records of both runs, and packets that the second declares for the first.
fn reported(pair: &Pair, runs: [&Run; 2]) -> (u64, u64) {
    let reported = runs.iter().map(|run| packets(own(pair, run))).sum();
    let orphans = runs[1].records.iter().filter(|record| record.text("/of") == "packets_of_the_run_before");
    (reported, orphans.filter_map(|record| record.number("/count")).sum())
}

/// The next agent reports what a killed one had not: counts and unread records are in pinned maps.
#[test]
fn the_next_agent_reports_a_killed_agents_counts() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let pins = Pins::mount()?;
    let first = surviving(&pins, &pair, &[])?;
    flood(&pair, 500)?;
    first.wait_for("the first packet's record", |records| drops(records).any(|r| pair.lab.owns(r)))?;
    first.signal(Signal::SIGSTOP)?;
    // These stay unread, since the agent is stopped.
    let ports = (6000..6100).map(|port| SocketAddr::from((SERVER, port)));
    traffic::udp(&pair.client()?.netns, CLIENT.into(), ports, 64)?;
    first.signal(Signal::SIGKILL)?;
    let first = first.finish()?;
    let second = surviving(&pins, &pair, &[])?;
    flood(&pair, 50)?;
    let second = second.stop()?;
    second.balance()?;
    let (reported, _) = reported(&pair, [&first, &second]);
    assert_eq!(reported, 650, "{:?}", second.records);
    assert_eq!(pair.counted("denied")?, 650);
    let ports: BTreeSet<_> = own(&pair, &second).filter_map(|record| record.number("/destination/port")).collect();
    assert!(ports.is_superset(&(6000..6100).collect()), "{ports:?}");
    assert!(own(&pair, &second).all(|record| record.pod("destination") == "lab/server"));
    Ok(())
}

/// In the middle of a flood not even packets between two agents are missing: the hook stays attached.
#[test]
fn a_kept_hook_leaves_no_gap() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let pins = Pins::mount()?;
    let first = surviving(&pins, &pair, &[])?;
    let done = AtomicBool::new(false);
    let runs = thread::scope(|scope| -> Result<_> {
        let sender = scope.spawn(|| {
            let more = std::iter::repeat_n(SocketAddr::from((SERVER, 5000)), 5_000_000);
            let flood = more.take_while(|_| !done.load(Ordering::Acquire));
            traffic::udp(&pair.client()?.netns, CLIENT.into(), flood, 100)
        });
        let runs = || -> Result<_> {
            first.wait_for("the first packet's record", |records| drops(records).any(|r| pair.lab.owns(r)))?;
            first.signal(Signal::SIGKILL)?;
            let first = first.finish()?;
            let counted = pair.counted("denied")?;
            // The gap: packets are dropped while there is no agent.
            eventually("more packets to be dropped", || Ok((pair.counted("denied")? > counted).then_some(())))?;
            Ok((first, surviving(&pins, &pair, &[])?))
        };
        let runs = runs();
        done.store(true, Ordering::Release);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (first, second) = runs?;
        Ok([first, second.stop()?])
    })?;
    let [first, second] = &runs;
    second.balance()?;
    let (reported, orphans) = reported(&pair, [first, second]);
    let counted = pair.counted("denied")?;
    // Packets lost with the first agent may be another lab's.
    assert!(
        reported <= counted && counted <= reported + orphans,
        "{counted}: reported {reported}, ended with the first agent {orphans}"
    );
    assert!(counted - reported <= 1, "reported {reported} of {counted}: one flow has one record at a time");
    Ok(())
}

/// One agent ends cleanly and the next one takes over its hook while a flow goes on: every packet is counted once.
#[test]
fn a_rolling_update_loses_nothing() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let pins = Pins::mount()?;
    let state = tempfile::tempdir()?;
    let state = state.path().to_string_lossy();
    let start = || start(&pins, &pair, &["--survive-restart", "--aggregation-window", "500ms", "--state-dir", &state]);
    let windows = |records: &[Record]| drops(records).filter(|r| pair.lab.owns(r) && r.count() > 1).count() >= 3;
    let first = start()?;
    let done = AtomicBool::new(false);
    let [first, second] = thread::scope(|scope| -> Result<_> {
        let sender = scope.spawn(|| {
            let next = || {
                thread::sleep(Duration::from_millis(2));
                (!done.load(Ordering::Acquire)).then_some(SocketAddr::from((SERVER, 5000)))
            };
            traffic::udp(&pair.client()?.netns, CLIENT.into(), std::iter::from_fn(next), 64)
        });
        let runs = || -> Result<_> {
            first.wait_for("a flow of several windows", windows)?;
            let first = first.stop()?;
            let second = start()?;
            second.wait_for("the same flow", windows)?;
            Ok((first, second))
        };
        let runs = runs();
        done.store(true, Ordering::Release);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (first, second) = runs?;
        Ok([first, second.stop()?])
    })?;
    first.balance()?;
    second.balance()?;
    assert_eq!(reported(&pair, [&first, &second]), (pair.counted("denied")?, 0));
    assert_eq!(loss(&second, "not_attached"), None, "the hook was attached all the time");
    assert_eq!(loss(&second, "kernel_map"), None, "and nothing was removed");
    Ok(())
}

/// The first loss of a stage that a run declares.
fn loss<'a>(run: &'a Run, stage: &str) -> Option<&'a Record> {
    run.records.iter().find(|record| record.kind() == "loss" && record.text("/stage") == stage)
}

/// A run with ten drops of its own, and what it left in the kernel.
fn run_with_drops(agent: Agent, pair: &Pair) -> Result<Run> {
    flood(pair, 10)?;
    agent.wait_for("the first packet's record", |records| drops(records).any(|r| pair.lab.owns(r)))?;
    let run = agent.stop()?;
    let wrong = imbalances(&run)?;
    assert!(run.exit.success() && wrong.is_empty(), "{wrong:?}: {}", run.stderr);
    assert_eq!(packets(own(pair, &run)), 10, "its own packets and no others: {:?}", run.records);
    Ok(run)
}

/// An agent with other options stands for one of another version: either has other programs or settings.
#[test]
fn another_version_removes_what_it_finds() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let pins = Pins::mount()?;
    let state = tempfile::tempdir()?;
    let state = state.path().to_string_lossy().into_owned();
    let with_state = ["--state-dir", &state];

    let first = run_with_drops(surviving(&pins, &pair, &with_state)?, &pair)?;
    let of_first = pins.left()?;
    assert!(matches!(of_first.as_slice(), [(_, true)]), "the hook stays: {of_first:?}");
    assert!(first.stderr.contains("stays attached"), "and the log says so: {}", first.stderr);
    // The hook goes on counting for an agent of the same kind, which is not started.
    flood(&pair, 5)?;

    let other_options = ["--ring-kib", "4096", "--state-dir", &state];
    let second = run_with_drops(surviving(&pins, &pair, &other_options)?, &pair)?;
    let of_second = pins.left()?;
    assert!(matches!(of_second.as_slice(), [(_, true)]), "one hook, its own: {of_second:?}");
    assert_ne!(of_first[0].0, of_second[0].0);
    flood(&pair, 5)?;

    let third = run_with_drops(start(&pins, &pair, &with_state)?, &pair)?;
    assert_eq!(pins.left()?, [], "nothing stays of an agent without the option");
    assert_eq!(pair.counted("denied")?, 40);

    for (run, before, what) in [(&second, &first, "with other options"), (&third, &second, "--survive-restart")] {
        assert!(run.stderr.contains(what), "{}", run.stderr);
        let removed = loss(run, "kernel_map").context("the removal is declared")?;
        assert_eq!((removed.text("/reason"), removed.number("/count")), ("pins_removed", None), "{removed}");
        let gap = loss(run, "not_attached").context("the time between is declared")?;
        assert!(gap.text("/time") <= gap.text("/last_time"), "{gap}");
        let answer = run.verify_log()?;
        let answer = String::from_utf8_lossy(&answer.stdout);
        assert!(answer.starts_with("Complete but for declared gaps"), "verify-log: {answer}");
        assert_eq!(run.records[0].text("/previous_run"), before.records[0].text("/run"));
    }
    let fourth = run_with_drops(start(&pins, &pair, &[])?, &pair)?;
    assert_eq!(loss(&fourth, "kernel_map"), None, "there was nothing to remove");
    fourth.balance()
}

/// The capabilities of the default DaemonSet are enough.
#[test]
fn no_further_capability_is_needed() -> Result<()> {
    require!(can_confine());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let pins = Pins::mount()?;
    let start = || -> Result<Agent> {
        let mut command = confined(&[BPF, PERFMON, SYSLOG], &["agent", "--hooks", "kfree_skb", "--survive-restart"])?;
        command.arg("--pin-dir").arg(pins.folder()).arg("--manifests").arg(pair.manifests());
        let agent = Agent::spawn(command)?;
        agent.wait_for("its start", |records| records.iter().any(|r| r.text("/phase") == "started"))?;
        Ok(agent)
    };
    run_with_drops(start()?, &pair)?;
    let left = pins.left()?;
    flood(&pair, 5)?;
    let agent = start()?;
    let run = agent.stop()?;
    run.balance()?;
    assert_eq!(packets(own(&pair, &run)), 5, "what was dropped between the two: {:?}", run.records);
    assert_eq!(pins.left()?, left, "the same hook: {left:?}");
    Ok(())
}

/// Without a BPF file system the agent does not start: one message names the path and the remedy.
#[test]
fn nothing_can_be_pinned_elsewhere() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let elsewhere = tempfile::tempdir()?;
    for (folder, why) in [
        (elsewhere.path().join("pins"), "is in no bpf file system"),
        ("/proc/pins".into(), "No such file or directory"),
    ] {
        let mut command = Command::new(agent::binary()?);
        command.args(["agent", "--survive-restart", "--pin-dir"]).arg(&folder).arg("--manifests").arg(pair.manifests());
        let run = Agent::spawn(command)?.finish()?;
        assert_eq!(run.exit.code(), Some(1), "{run:?}");
        for part in [why, &folder.to_string_lossy(), "mount -t bpf bpf /sys/fs/bpf"] {
            assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
        }
        super::lifecycle::quiet(&run.stderr);
    }
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md"))?;
    let row = page.lines().find(|line| line.starts_with("| `/sys/fs/bpf`")).context("a row for the mount")?;
    assert!(row.ends_with("| the agent does not start with `--survive-restart` |"), "{row}");
    Ok(())
}

/// `doctor --cleanup` where the pins are in their usual place.
fn cleanup(pins: &Pins) -> Result<Output> {
    let script = "mount --bind \"$1\" /sys/fs/bpf && exec \"$2\" doctor --cleanup";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "cleanup"]).arg(pins.0.path());
    command.arg(agent::binary()?).output().context("unshare")
}

/// `doctor --cleanup` removes pins without an agent, and keeps a running agent's.
#[test]
fn doctor_removes_what_survived() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let pins = Pins::mount()?;
    let agent = surviving(&pins, &pair, &[])?;
    let refused = cleanup(&pins)?;
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("in use by a running agent: stop that agent"), "{stderr}");
    run_with_drops(agent, &pair)?;
    assert!(matches!(pins.left()?.as_slice(), [(_, true)]), "{:?}", pins.left()?);
    for expected in ["removed pinned maps and hooks under /sys/fs/bpf/netpol-trace", "Found nothing of netpol-trace"] {
        let output = cleanup(&pins)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains(expected), "{stdout}");
        assert_eq!(pins.left()?, []);
    }
    Ok(())
}
