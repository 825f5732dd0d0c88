//! The config file with real drops: excluded drops are counted, a change takes effect, a bad one does not.

use std::path::PathBuf;

use anyhow::Result;
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{can_run_lab, require, traffic};

struct Configured {
    pair: Pair,
    file: PathBuf,
}

impl Configured {
    fn new(config: &str) -> Result<Configured> {
        let pair = Pair::start(DENY)?;
        let file = pair.manifests().with_extension("config");
        std::fs::write(&file, config)?;
        Ok(Configured { pair, file })
    }

    /// Starts the agent as the DaemonSet does: nearly all settings are in the file.
    fn start(&self) -> Result<Agent> {
        let (file, manifests) = (self.file.to_string_lossy(), self.pair.manifests().to_string_lossy());
        Agent::start(&["--config", &file, "--manifests", &manifests])
    }

    /// Each attempt has a `port` of its own.
    fn send(&self, port: u16) -> Result<()> {
        traffic::udp(&self.pair.client()?.netns, CLIENT.into(), [(SERVER, port).into()], 32)?;
        Ok(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn to(port: u64) -> impl Fn(&Record) -> bool {
    move |record| record.is_drop() && record.number("/destination/port") == Some(port)
}

#[test]
fn the_config_file_counts_and_is_read_again() -> Result<()> {
    require!(can_run_lab());
    let lab = Configured::new("cluster-name: lab-cluster\nexclude:\n  namespaces: [lab]\n")?;
    let agent = lab.start()?;
    lab.send(5001)?;

    // A status has the settings in force. Excluded drops are counted once the next drop has its record.
    std::fs::write(&lab.file, "cluster-name: other\nlabels: []\n")?;
    agent.wait_for("the file is read again", |records| {
        records.iter().any(|record| !record.list("/config/pending").is_empty())
    })?;
    lab.send(5002)?;
    agent.wait_for("a record", |records| records.iter().any(to(5002)))?;

    // A mistake changes nothing.
    std::fs::write(&lab.file, "labels: []\nexclud:\n  namespaces: [lab]\n")?;
    agent.wait_for("a status with the mistake", |records| {
        records
            .iter()
            .any(|record| record.text("/config/error").contains(":2: unknown key \"exclud\": did you mean exclude?"))
    })?;
    lab.send(5003)?;
    agent.wait_for("a record", |records| records.iter().any(to(5003)))?;

    // The file goes away and comes back.
    std::fs::remove_file(&lab.file)?;
    agent.wait_for("a status without the file", |records| {
        records.last().is_some_and(|record| record.text("/config/error").contains("can't be read"))
    })?;
    std::fs::write(&lab.file, "cluster-name: lab-cluster\n")?;
    agent.wait_for("it is good again", |records| {
        let status = records.iter().rfind(|record| record.kind() == "status");
        status.is_some_and(|s| s.value().pointer("/config").is_some() && s.value().pointer("/config/error").is_none())
    })?;
    lab.send(5004)?;
    agent.wait_for("a record", |records| records.iter().any(to(5004)))?;

    let run = agent.stop()?;
    let stopped = run.stopped()?;
    let total = |name: &str| stopped.number(&format!("/totals/agent/{name}")).unwrap_or_default();
    assert_eq!(total("read"), total("written") + total("lost"), "{stopped}");
    assert!(!run.records.iter().any(to(5001)), "left out by the file");
    assert!(total("filtered") >= 1, "{stopped}");
    assert!(stopped.number("/causes/policy") >= Some(4), "counted by its cause: {stopped}");
    // Every line has the name that the agent started with.
    assert!(run.records.iter().all(|record| record.text("/cluster") == "lab-cluster"));
    let labels = |port| {
        let record = run.records.iter().find(|record| to(port)(record));
        record.and_then(|record| record.value().pointer("/source/pod/labels").cloned())
    };
    assert_eq!(labels(5002), None, "no label is to be written");
    assert!(labels(5004).is_some());
    Ok(())
}

#[test]
fn a_bad_config_file_is_refused_at_the_start() -> Result<()> {
    require!(can_run_lab());
    let lab = Configured::new("all-drops: true\nring-kib: 100\nlables: [app]\n")?;
    let mut command = std::process::Command::new(agent::binary()?);
    command.arg("agent").arg("--config").arg(&lab.file).arg("--manifests").arg(lab.pair.manifests());
    let run = Agent::spawn(command)?.finish()?;
    assert_eq!(run.exit.code(), Some(2), "{}", run.stderr);
    let file = lab.file.display();
    for line in [
        format!("{file}:2: invalid value '100' for '--ring-kib <KIB>': must be a power of two from 64 to 1048576"),
        format!("{file}:3: unknown key \"lables\": did you mean labels?"),
    ] {
        assert!(run.stderr.contains(&line), "{}", run.stderr);
    }
    super::lifecycle::quiet(&run.stderr);
    Ok(())
}
