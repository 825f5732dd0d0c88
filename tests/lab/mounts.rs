//! Leaves out each mount of the DaemonSet in turn, on a read-only root as in a container, and compares the effect with docs/security.md.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::{self, Agent, Run};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::{can_run_lab, has_program, require, traffic};

/// The container's mounts, below the only folder where mount points can be made here.
const CONFIG: &str = "/mnt/config";
const STATE: &str = "/mnt/state";
const HISTORY: &str = "/mnt/history";

/// Nothing is writable but what is bound from `$0`; what has no folder there is not mounted.
const CONTAINER: &str = "
set -e
from=$1; shift
mount -t tmpfs none /mnt
for name in config state history; do
    test -d $from/$name || continue
    mkdir /mnt/$name
    mount --bind $from/$name /mnt/$name
done
mount -o remount,bind,ro /mnt/config 2>/dev/null || true
mount -o remount,ro /mnt
findmnt --raw --noheadings --output TARGET | while read -r target; do
    case $target in /mnt/* | /proc | /proc/* | /sys | /sys/*) continue ;; esac
    mount -o remount,bind,ro \"$target\" 2>/dev/null || true
done
mount -o remount,bind,ro /
exec \"$@\"
";

fn can_run() -> Result<()> {
    can_run_lab()?;
    ["unshare", "findmnt"].into_iter().try_for_each(|program| has_program(program, "util-linux"))
}

/// A run of the agent with one drop by policy, if the agent starts.
fn run(pair: &Pair, from: &Path) -> Result<Run> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", CONTAINER, "container"]).arg(from);
    command.arg(agent::binary()?).args(["agent", "--hooks", "kfree_skb", "--manifests"]).arg(pair.manifests());
    command.arg(format!("--config={CONFIG}/config.yaml")).arg(format!("--state-dir={STATE}"));
    command.arg(format!("--history-dir={HISTORY}"));
    let agent = Agent::spawn(command)?;
    let started = agent.wait_for("its start", |records| records.iter().any(|r| r.text("/phase") == "started"));
    if started.is_err() {
        return agent.finish();
    }
    traffic::udp(&pair.client()?.netns, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
    agent.wait_for("the drop", |records| records.iter().any(|r| r.is_drop() && pair.lab.owns(r)))?;
    let root = fs::read_to_string(format!("/proc/{}/mountinfo", agent.pid()))?;
    let root = root.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("a root")?.to_owned();
    assert!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|o| o == "ro")), "{root}");
    agent.stop()
}

#[test]
fn each_mount_is_for_what_the_page_says() -> Result<()> {
    require!(can_run());
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md"))?;
    let pair = Pair::start(DENY)?;
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name);
    for name in ["config", "state", "history"] {
        fs::create_dir(place(name))?;
    }
    fs::write(place("config").join("config.yaml"), "all-drops: true\n")?;

    // With all mounts the root can be read-only, and the next run knows this one.
    let first = run(&pair, dir.path())?;
    first.balance().with_context(|| first.stderr.clone())?;
    let second = run(&pair, dir.path())?;
    let status = second.records.iter().find(|r| r.text("/phase") == "started").context("a start")?;
    assert_eq!(status.text("/previous_run"), first.records[0].text("/run"), "{status}");
    assert!(second.records.iter().any(|r| r.text("/stage") == "not_attached"), "the gap is declared");
    let kept = fs::read_dir(place("history"))?.count();
    assert!(kept > 0, "records are kept");

    for (name, place, named) in [
        ("config", "/etc/netpol-trace`", CONFIG),
        ("state", "/var/lib/netpol-trace`", STATE),
        ("history", "/var/log/netpol-trace`", HISTORY),
    ] {
        fs::rename(dir.path().join(name), dir.path().join("elsewhere"))?;
        let without = run(&pair, dir.path())?;
        let row = page.lines().find(|line| line.starts_with("| ") && line.contains(place));
        let row = row.with_context(|| format!("docs/security.md has no row for {name}"))?;
        assert!(without.stderr.contains(named), "the message names what is missing:\n{}", without.stderr);
        super::lifecycle::quiet(&without.stderr);
        assert_eq!(
            row.contains("does not start"),
            !without.exit.success(),
            "without {name}: {row}\n{}",
            without.stderr
        );
        if name == "history" {
            // Records are written, and `sinks` shows the error of this output.
            let sink = without.stopped()?.list("/sinks").get(1).context("the history")?.clone();
            assert!(sink["error"].as_str().is_some_and(|error| error.contains(HISTORY)), "{sink}");
            assert!(sink["lost"].as_u64() > Some(0) && sink["written"] == 0, "{sink}");
            assert!(row.contains("`sinks`"), "{row}");
        }
        fs::rename(dir.path().join("elsewhere"), dir.path().join(name))?;
    }
    Ok(())
}
