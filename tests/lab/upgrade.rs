//! One agent ends and the next starts, as in an upgrade: the stream has the previous run's id and the time without hooks.

use std::io::Write;

use anyhow::{Context, Result};
use jiff::Timestamp;
use netpol_trace_tests::agent::{Agent, Run};
use netpol_trace_tests::pair::{DENY, Pair};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{can_run_lab, eventually, require};
use nix::sys::signal::Signal;

fn time(record: &Record, pointer: &str) -> Result<Timestamp> {
    record.text(pointer).parse().with_context(|| format!("no time at {pointer}: {record}"))
}

fn started(run: &Run) -> Result<&Record> {
    run.records.iter().find(|record| record.text("/phase") == "started").context("a status `started`")
}

#[test]
fn the_time_between_two_runs_is_declared() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let (state, manifests) = (state.to_string_lossy(), pair.manifests().to_string_lossy());
    let start = || Agent::start(&["--state-dir", &state, "--manifests", &manifests]);

    let agent = start()?;
    let first = agent.stop()?;
    let status = started(&first)?;
    assert_eq!(status.text("/previous_run"), "", "the first run here");
    assert!(!first.records.iter().any(|record| record.text("/stage") == "not_attached"));

    let mut previous = (first, "stopped");
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT] {
        let agent = start()?;
        if signal == Signal::SIGKILL {
            // The state file has its final name by then. The next run does not know a run that was killed earlier.
            eventually("the state file", || {
                let text = std::fs::read_to_string(dir.path().join("state/last-run.json"))?;
                let run = agent.records().first().map(|record| record.text("/run").to_owned());
                Ok(run.is_some_and(|run| text.contains(&run)).then_some(()))
            })?;
            // Its records follow its status in order.
            agent.wait_for("the gap", |records| records.iter().any(|r| r.text("/stage") == "not_attached"))?;
        }
        agent.signal(signal)?;
        let run = agent.finish()?;
        let status = started(&run)?;
        let (before, how) = &previous;
        assert_eq!(status.text("/previous_run"), before.records[0].text("/run"));
        let loss = run.records.iter().find(|record| record.text("/stage") == "not_attached").context("the gap")?;
        assert_eq!((loss.kind(), loss.text("/reason"), loss.number("/count")), ("loss", *how, None));
        let (since, until) = (time(loss, "/time")?, time(loss, "/last_time")?);
        if *how == "stopped" {
            let last = before.stopped()?;
            // The agent writes the state file before it detaches the hooks, and before the last status.
            assert!(since <= time(last, "/time")?, "{loss}\n{last}");
        }
        assert!(since <= until && until <= time(status, "/time")?, "{loss}\n{status}");
        writeln!(std::io::stderr(), "after a run that was {how}: {:.0} without hooks", until.duration_since(since))?;
        previous = (run, if signal == Signal::SIGKILL { "killed" } else { "stopped" });
    }

    // Two agents at once would both write the state file.
    let one = start()?;
    let mut second = std::process::Command::new(netpol_trace_tests::agent::binary()?);
    second.args(["agent", "--state-dir", &state, "--manifests", &manifests]);
    let second = Agent::spawn(second)?.finish()?;
    assert_eq!(second.exit.code(), Some(1));
    assert!(second.stderr.contains("in use by another agent"), "{}", second.stderr);
    assert!(one.stop()?.exit.success());
    Ok(())
}
