//! Runs the agent on manifests that are broken, half-written, duplicated or unusual.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::pair::{self, CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{can_run_lab, eventually, require, traffic};

use super::lifecycle::quiet;

/// The first good line is a policy; the document after it, from line 5 on, is not.
const BROKEN: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: other
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: broken
  namespace: lab
spec:
  podSelector: {}
  ingress: [
";

/// A manifest breaks during the run: the last good state stays in force, a status says what is wrong and where, and the repaired file is
/// read.
#[test]
fn a_manifest_breaks_while_the_agent_runs() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let agent = pair.watch()?;
    let file = pair.manifests().join("policy.yaml");
    let good = fs::read_to_string(&file)?;

    replace(&file, BROKEN)?;
    agent.wait_for("a status that names the broken file", |records| records.iter().any(|r| complains(r, &file)))?;
    let before = send(&pair, &agent)?;
    assert_eq!(before.isolated_by("ingress"), ["lab/deny-server"], "the last good state: {before}");

    let renamed = good.replace("deny-server", "deny-again");
    replace(&file, &renamed)?;
    agent.wait_for("a status in sync again", |records| {
        records.iter().rev().find(|r| is_status(r)).is_some_and(in_sync)
    })?;
    let after = send(&pair, &agent)?;
    assert_eq!(after.isolated_by("ingress"), ["lab/deny-again"], "the repaired state: {after}");

    pair.stop_and_compare(agent, "denied").map(drop)
}

/// An edited policy is used without a restart.
#[test]
fn manifests_are_read_again_when_they_change() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let agent = pair.watch()?;
    let first = send(&pair, &agent)?;
    assert_eq!(first.isolated_by("ingress"), ["lab/deny-server"], "{first}");
    replace(&pair.manifests().join("more.yaml"), &pair::policy("deny-more", "server"))?;
    eventually("a record that names both policies", || {
        let both = send(&pair, &agent)?.isolated_by("ingress") == ["lab/deny-more", "lab/deny-server"];
        Ok(both.then_some(()))
    })?;
    pair.stop_and_compare(agent, "denied").map(drop)
}

/// A manifest is broken at the start: the agent fails with file, document and line, or goes on with the rest and a status that says so.
#[test]
fn a_manifest_is_broken_from_the_start() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let file = pair.manifests().join("broken.yaml");
    fs::write(&file, BROKEN)?;
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--duration", "1s", "--manifests"]).arg(pair.manifests());
    let run = Agent::spawn(command)?.finish()?;
    quiet(&run.stderr);
    let reported = run.records.iter().any(|record| complains(record, &file));
    assert!(reported || (!run.exit.success() && names_place(&run.stderr, &file)), "{}\n{:?}", run.stderr, run.records);
    Ok(())
}

/// A missing path is named in an error, or in the status of an agent that waits for it.
#[test]
fn no_such_manifests() -> Result<()> {
    const NOWHERE: &str = "/nonexistent/manifests";
    require!(can_run_lab());
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--duration", "1s", "--manifests", NOWHERE]);
    let run = Agent::spawn(command)?.finish()?;
    quiet(&run.stderr);
    assert!(run.stderr.contains(NOWHERE), "{}", run.stderr);
    let reported = |status: &Record| !in_sync(status) && status.to_string().contains(NOWHERE);
    assert!(!run.exit.success() || run.records.iter().filter(|r| is_status(r)).all(reported), "{:?}", run.records);
    Ok(())
}

/// Objects of unknown kinds are skipped and counted.
#[test]
fn unknown_kinds_are_counted() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\n  namespace: lab\ndata: {}\n";
    fs::write(pair.manifests().join("config.yaml"), config)?;
    let agent = pair.watch()?;
    let started = agent.records().into_iter().find(is_status);
    let skipped = started.as_ref().and_then(|status| status.number("/sources/0/skipped/ConfigMap"));
    assert_eq!(skipped, Some(1), "{started:?}");
    pair.stop_and_compare(agent, "denied").map(drop)
}

/// Pods that share an address, have none, or have ended: a record names the right owner or says `unknown`.
#[test]
fn addresses_without_a_clear_owner() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let shared: IpAddr = CLIENT.into();
    let succeeded = pair::pod("job", &[SERVER.into()]).replace("phase: Running", "phase: Succeeded");
    let pods = [pair::pod("second", &[shared]), pair::pod("pending", &[]), succeeded].concat();
    fs::write(pair.manifests().join("more-pods.yaml"), pods)?;
    let agent = pair.watch()?;
    let record = send(&pair, &agent)?;
    // `client` and `second` have one address, so the sender is unknown.
    assert_eq!((record.pod("source"), record.text("/source/kind")), (String::new(), "unknown"), "{record}");
    // The job has ended, and the server has its address.
    assert_eq!(record.pod("destination"), "lab/server", "{record}");
    pair.stop_and_compare(agent, "denied").map(drop)
}

/// A label with a line break and an escape sequence, which an API server would refuse, is escaped in lines and on terminals.
#[test]
fn labels_cannot_forge_a_line() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let forged = r#""x\n{\"schema\":\"netpol-trace/v1\",\"kind\":\"drop\"}\e[2J""#;
    let file = pair.manifests().join("cluster.yaml");
    let cluster =
        fs::read_to_string(&file)?.replace("    app: client\n", &format!("    app: client\n    note: {forged}\n"));
    assert!(cluster.contains("note:"), "the label is in the manifest");
    fs::write(&file, cluster)?;
    let agent = pair.watch()?;
    send(&pair, &agent)?;
    // Each line of stdout parses, or this fails.
    let run = agent.stop()?;
    run.balance()?;
    let lines: String = run.records.iter().map(Record::to_string).collect();
    assert!(!lines.contains('\u{1b}') && !run.stderr.contains('\u{1b}'), "a raw escape:\n{lines}\n{}", run.stderr);
    Ok(())
}

/// Sends one packet that the rule drops and returns its record. The policy's age does not matter here.
fn send(pair: &Pair, agent: &Agent) -> Result<Record> {
    let source = traffic::udp(&pair.client()?.netns, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
    let mine = |record: &Record| record.is_drop() && pair.lab.owns(record) && record.address("source") == Some(source);
    agent.wait_for("the record of the packet sent", |records| records.iter().any(mine))?;
    Ok(agent.records().into_iter().find(mine).expect("it was there"))
}

/// Replaces a file atomically, as an editor or a ConfigMap does.
fn replace(file: &Path, content: &str) -> Result<()> {
    let new = file.with_extension("new~");
    fs::write(&new, content)?;
    Ok(fs::rename(new, file)?)
}

fn is_status(record: &Record) -> bool {
    record.kind() == "status"
}

fn in_sync(status: &Record) -> bool {
    let sources = status.list("/sources");
    !sources.is_empty() && sources.iter().all(|source| source["synced"] == true && source["error"].is_null())
}

/// Whether a status says that this file is broken, and where.
fn complains(record: &Record, file: &Path) -> bool {
    let errors = record.list("/sources").iter().filter_map(|source| source["error"].as_str());
    is_status(record) && errors.into_iter().any(|error| names_place(error, file))
}

/// File, document and line.
fn names_place(error: &str, file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    error.contains(&name) && error.contains("document") && error.contains(|c: char| c.is_ascii_digit())
}
