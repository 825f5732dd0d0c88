//! The OpenTelemetry Collector receives the agent's OTLP over TLS and forwards what it has parsed.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::cluster::built;
use netpol_trace_tests::cluster::programs::COLLECTOR;
use netpol_trace_tests::collector::{Collector, certificates};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::process::KilledOnDrop;
use netpol_trace_tests::{can_run_lab, eventually, has_program, require, traffic};
use serde_json::json;

use crate::consumers::{PYTHON, check, find};

/// Starts the Collector with a TLS listener at `listen`. It forwards to `to`.
fn start(dir: &Path, listen: SocketAddr, to: SocketAddr) -> Result<KilledOnDrop> {
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let config = json!({
        "receivers": { "otlp": { "protocols": { "http": {
            "endpoint": listen.to_string(),
            "tls": { "cert_file": file("server.pem"), "key_file": file("server.key") },
        } } } },
        "exporters": { "otlp_http": { "endpoint": format!("http://{to}"), "compression": "none" } },
        "service": {
            "telemetry": { "metrics": { "level": "none" } },
            "pipelines": { "logs": { "receivers": ["otlp"], "exporters": ["otlp_http"] } },
        },
    });
    // JSON is YAML too.
    fs::write(dir.join("config.yaml"), config.to_string())?;
    let log = fs::File::create(dir.join("collector.log"))?;
    let mut command = Command::new(built(&COLLECTOR)?);
    command.arg("--config").arg(format!("file:{}", file("config.yaml")));
    let mut running = KilledOnDrop(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?);
    eventually("the Collector listens", || {
        let ended = running.0.try_wait()?;
        ensure!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(dir.join("collector.log"))?);
        Ok(TcpStream::connect(listen).ok())
    })?;
    Ok(running)
}

#[test]
fn the_collector_takes_what_the_agent_sends() -> Result<()> {
    let python = require!(find(PYTHON));
    require!(built(&COLLECTOR));
    require!(has_program("openssl", "openssl"));
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let dir = tempfile::tempdir()?;
    certificates(dir.path())?;
    let behind = Collector::start(&[])?;
    let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let _collector = start(dir.path(), listen, behind.address)?;

    let mut command = Command::new(netpol_trace_tests::agent::binary()?);
    command.args(["agent", "--output", "stdout", "--output", &format!("otlp:https://{listen}"), "--manifests"]);
    command.arg(pair.manifests()).env("SSL_CERT_FILE", dir.path().join("ca.pem"));
    let agent = Agent::spawn(command)?;
    agent.wait_for("its start", |records| records.iter().any(|record| record.text("/phase") == "started"))?;
    traffic::udp(&pair.client()?.netns, CLIENT.into(), (5000..5020).map(|port| (SERVER, port).into()), 64)?;
    let own = |records: &[netpol_trace_tests::record::Record]| records.iter().filter(|r| pair.lab.owns(r)).count();
    agent.wait_for("the drops", |records| own(records) >= 20)?;
    let run = agent.stop()?;
    let log = || fs::read_to_string(dir.path().join("collector.log")).unwrap_or_default();
    let stopped = run.stopped()?;
    let sink = stopped.list("/sinks").get(1).cloned().unwrap_or_default();
    ensure!(sink["lost"] == 0 && sink["error"].is_null(), "{stopped}\n{}\n{}", run.stderr, log());

    // The receiver behind the Collector has every record, in the official types.
    let mut count = 0;
    let whole = eventually("every record", || {
        let (taken, heads) = behind.taken();
        ensure!(heads.iter().all(|head| head.starts_with("POST /v1/logs ")), "{heads:?}");
        let mut files = Vec::new();
        for (number, body) in taken.iter().enumerate() {
            let path = dir.path().join(format!("behind-{number:04}.otlp"));
            fs::write(&path, body)?;
            files.push(path);
        }
        if files.len() == std::mem::replace(&mut count, files.len()) {
            return Ok(None);
        }
        let seen = check(&python, "otlp", &files)?;
        let records: u64 = seen.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
        Ok((records >= run.records.len() as u64).then_some(seen))
    });
    let whole = whole.map_err(|error| error.context(log()))?;
    let drops = run.records.iter().filter(|record| record.is_drop()).count();
    ensure!(whole["netpol_trace.packet.denied"] == drops, "{whole}, and {drops} drops on stdout");
    Ok(())
}
