//! One run of the agent with every kind of sink, shared by the tests of the formats.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::{Agent, Run};
use netpol_trace_tests::pair::{CLIENT, CLIENT6, DENY, Pair, SERVER, SERVER6};
use netpol_trace_tests::{eventually, traffic};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use netpol_trace_tests::collector::Collector;

pub struct Everything {
    pub run: Run,
    pub denied: u64,
    folder: TempDir,
}

/// Packets of a flood that overruns the ring, for a `loss` record.
const FLOOD: u16 = 10_000;

pub fn everything() -> Result<&'static Everything> {
    static ONCE: OnceLock<Result<Everything, String>> = OnceLock::new();
    let once = ONCE.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    once.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn make() -> Result<Everything> {
    let folder = tempfile::tempdir()?;
    let pair = Pair::start(DENY)?;
    // The receiver answers the first request with a temporary error, which may not cause a loss or a duplicate.
    let collector = Collector::start(&[("503 Service Unavailable", "retry-after: 1\r\n", b"")])?;
    let place = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let arguments = [
        "--ring-kib".into(),
        "64".into(),
        "--cluster-name".into(),
        "lab".into(),
        "--node-name".into(),
        "node-a".into(),
        "--manifests".into(),
        pair.manifests().to_string_lossy().into_owned(),
        "--output=stdout".into(),
        format!("--output=file:{}", place("native.jsonl")),
        format!("--output=file:{},format=ecs", place("ecs.jsonl")),
        format!("--output=file:{},format=ocsf", place("ocsf.jsonl")),
        format!("--output=file:{},format=otel", place("otel.jsonl")),
        format!("--output=file:{},max-size=64KiB,keep=1000", place("rotated.jsonl")),
        format!("--output=otlp:http://{}", collector.address),
    ];
    let agent = Agent::start(&arguments)?;
    let client = &pair.client()?.netns;
    traffic::udp(client, CLIENT.into(), (5000..5010).map(|port| (SERVER, port).into()), 64)?;
    traffic::udp(client, CLIENT6.into(), (5000..5010).map(|port| (SERVER6, port).into()), 64)?;
    agent.wait_for("the first drops", |records| records.iter().filter(|r| pair.lab.owns(r)).count() >= 20)?;
    agent.signal(Signal::SIGSTOP)?;
    traffic::udp(client, CLIENT.into(), (10_000..10_000 + FLOOD).map(|port| (SERVER, port).into()), 64)?;
    agent.signal(Signal::SIGCONT)?;
    agent.wait_for("a loss", |records| records.iter().any(|record| record.kind() == "loss"))?;
    let denied = pair.counted("denied")?;
    let run = agent.stop()?;
    eventually("the collector has the last request", || {
        let (taken, _) = collector.taken();
        Ok(taken.last().is_some_and(|body| has(body, b"netpol_trace.agent.status")).then_some(()))
    })?;
    let (taken, heads) = collector.taken();
    anyhow::ensure!(heads.iter().all(|head| head.starts_with("POST /v1/logs ")), "{heads:?}");
    anyhow::ensure!(heads.len() == taken.len() + 1, "one request was to fail: {} of {}", taken.len(), heads.len());
    for (number, body) in taken.iter().enumerate() {
        std::fs::write(folder.path().join(format!("request-{number:04}.otlp")), body)?;
    }
    Ok(Everything { run, denied, folder })
}

fn has(body: &[u8], text: &[u8]) -> bool {
    body.windows(text.len()).any(|window| window == text)
}

impl Everything {
    /// The files whose names begin and end like this, oldest first: a rotated file's lines come before those of the file itself.
    pub fn files(&self, begin: &str, end: &str) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.folder.path())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(begin) && (name.ends_with(end) || name.contains(&format!("{end}."))) {
                let age = name.rsplit_once(&format!("{end}.")).map_or(0, |(_, number)| number.parse().unwrap_or(0));
                files.push((std::cmp::Reverse(age), name));
            }
        }
        files.sort();
        anyhow::ensure!(!files.is_empty(), "no {begin}*{end}");
        Ok(files.into_iter().map(|(_, name)| self.folder.path().join(name)).collect())
    }

    /// Parses every line of a sink's files.
    pub fn lines(&self, begin: &str) -> Result<Vec<Value>> {
        let mut lines = Vec::new();
        for file in self.files(begin, ".jsonl")? {
            for line in std::fs::read_to_string(&file)?.lines() {
                lines.push(serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display()))?);
            }
        }
        Ok(lines)
    }
}
