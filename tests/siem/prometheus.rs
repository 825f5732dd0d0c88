//! Prometheus scrapes the agent and evaluates the alert rules; promtool finds no fault.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::process::KilledOnDrop;
use netpol_trace_tests::{can_run_lab, eventually, require, traffic};
use serde_json::Value;

use crate::consumers::program;

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// A port that is free at this moment.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Sends a GET and returns status and body.
fn get(address: SocketAddr, path: &str, headers: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\n{headers}connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer with a head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
    let body =
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { chunks(body) } else { body.into() };
    Ok((status, body))
}

fn chunks(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        whole += rest.get(..size).unwrap_or_default();
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}

fn ended(mut command: Command, input: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{command:?}: {text}");
    }
    Ok(text)
}

/// The alert rules are valid and fire as expected on test series.
#[test]
fn the_alert_rules_hold() -> Result<()> {
    for (subcommand, file) in [("check", "prometheus/alerts.yaml"), ("test", "prometheus/alerts.test.yaml")] {
        let mut promtool = require!(program("usr/bin/promtool"));
        promtool.args([subcommand, "rules"]).arg(deploy(file));
        ended(promtool, "")?;
    }
    Ok(())
}

#[test]
fn prometheus_scrapes_the_agent() -> Result<()> {
    let mut promtool = require!(program("usr/bin/promtool"));
    let mut prometheus = require!(program("usr/bin/prometheus"));
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    fs::write(at("token"), "s3cret\n")?;
    let (agents, own) = (free()?, free()?);
    let (listen, manifests) = (agents.to_string(), pair.manifests().to_string_lossy().into_owned());
    let agent = Agent::start(&["--listen", &listen, "--metrics-token-file", &at("token"), "--manifests", &manifests])?;
    traffic::udp(&pair.client()?.netns, CLIENT.into(), (5000..5007).map(|port| (SERVER, port).into()), 64)?;
    agent.wait_for("the drops", |records| records.iter().filter(|r| pair.lab.owns(r)).count() >= 7)?;

    // Probes need no token, /metrics does.
    eventually("it is ready", || Ok((get(agents, "/readyz", "")?.0 == 200).then_some(())))?;
    assert_eq!(get(agents, "/healthz", "")?, (200, "ok\n".to_owned()));
    assert_eq!(get(agents, "/metrics", "")?.0, 401);
    assert_eq!(get(agents, "/metrics", "authorization: Bearer s3creT\r\n")?.0, 401);
    let (status, page) = get(agents, "/metrics", "authorization: Bearer s3cret\r\n")?;
    assert_eq!(status, 200);
    let series = "netpol_trace_denied_packets_total{direction=\"ingress\",cause=\"policy\",namespace=\"lab\"} ";
    let counted = page.lines().find_map(|line| line.strip_prefix(series)).context("the drops are counted")?;
    assert!(counted.parse::<u64>()? >= 7, "{counted}");
    for address in [CLIENT.to_string(), SERVER.to_string(), "client".into()] {
        assert!(!page.contains(&address), "{address} is in a label");
    }
    promtool.args(["check", "metrics"]);
    ended(promtool, &page)?;

    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n- job_name: netpol-trace\n  \
         authorization: {{credentials_file: '{}'}}\n  static_configs: [{{targets: ['{listen}']}}]\n",
        deploy("prometheus/alerts.yaml").display(),
        at("token")
    );
    fs::write(at("prometheus.yaml"), config)?;
    prometheus
        .arg(format!("--config.file={}", at("prometheus.yaml")))
        .arg(format!("--storage.tsdb.path={}", at("data")));
    prometheus.arg(format!("--web.listen-address={own}"));
    let log = fs::File::create(at("prometheus.log"))?;
    let _running = KilledOnDrop(prometheus.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    let query =
        "/api/v1/query?query=netpol_trace_denied_packets_total%7Bcause%3D%22policy%22%2Cnamespace%3D%22lab%22%7D";
    let value = eventually("Prometheus has the drops", || {
        let Ok((200, body)) = get(own, query, "") else { return Ok(None) };
        let body: Value = serde_json::from_str(&body)?;
        Ok(body.pointer("/data/result/0/value/1").and_then(Value::as_str).map(str::to_owned))
    });
    let value = value.map_err(|error| error.context(fs::read_to_string(at("prometheus.log")).unwrap_or_default()))?;
    assert!(value.parse::<u64>()? >= 7, "{value}");
    let (_, rules) = get(own, "/api/v1/rules", "")?;
    assert!(rules.contains("NetpolTraceRecordsLost"), "{rules}");
    agent.stop()?.balance()
}

/// The dashboard uses only metrics that exist.
#[test]
fn the_dashboard_knows_its_metrics() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(deploy("grafana/netpol-trace.json"))?)?;
    let alerts = fs::read_to_string(deploy("prometheus/alerts.yaml"))?;
    let mut expressions = vec![alerts];
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions.push(target["expr"].as_str().context("an expression")?.to_owned());
        }
    }
    let known: Vec<&str> = netpol_trace::metrics::catalogue::ALL.iter().map(|metric| metric.name).collect();
    let mut asked = 0;
    for text in &expressions {
        // Every agent counts the same edit.
        let summed = text
            .split("netpol_trace_policy_changes_total")
            .next()
            .is_some_and(|before| before.ends_with("sum(increase("));
        assert!(!summed, "a sum over agents counts an edit as often as there are agents: {text}");
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("netpol_trace_") {
                assert!(known.contains(&word), "no metric {word}");
                asked += 1;
            }
        }
    }
    assert!(asked > 15, "only {asked} metrics are asked for");
    Ok(())
}
