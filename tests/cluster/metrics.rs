//! /metrics with `--metrics-rbac`: the API server decides who may read them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Result, ensure};
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::cluster::shared;
use netpol_trace_tests::{cluster, eventually, require};
use serde_json::json;

use super::accounts::{account, ask, bind, roles, token};

const NAMESPACE: &str = "metrics-rbac";

/// A port that is free at this moment.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn status(address: SocketAddr, path: &str, token: Option<&str>) -> Result<u16> {
    let answer = ask(address, path, token)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| anyhow::anyhow!("no status: {answer}"))
}

/// Starts an agent that asks the API server of this kubeconfig who may read its metrics.
fn start(kubeconfig: &Path) -> Result<(Agent, SocketAddr)> {
    let address = free()?;
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/manifests");
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--hooks", "kfree_skb", "--metrics-rbac", "--listen", &address.to_string(), "--manifests"]);
    command.arg(manifests).env("KUBECONFIG", kubeconfig);
    let agent = Agent::spawn(command)?;
    agent.wait_for("its start", |records| records.iter().any(|record| record.text("/phase") == "started"))?;
    Ok((agent, address))
}

#[test]
fn who_may_read_the_metrics() -> Result<()> {
    require!(cluster::can_run(&[]));
    let plane = shared()?;
    plane.namespace(NAMESPACE, &json!({}))?;
    roles(plane, NAMESPACE)?;
    for name in ["agent", "powerless", "scraper", "outsider"] {
        account(plane, NAMESPACE, name)?;
    }
    bind(plane, "metrics-agent", None, ("ClusterRole", "netpol-trace"), (NAMESPACE, "agent"))?;
    bind(plane, "metrics-scraper", None, ("ClusterRole", "netpol-trace-metrics"), (NAMESPACE, "scraper"))?;
    let (agent, address) = start(&plane.account_kubeconfig(NAMESPACE, "agent")?)?;

    let of = |name: &str, audience: Option<&str>| token(plane, NAMESPACE, name, audience);
    let ours = of("scraper", Some("netpol-trace"))?;
    // The API server sees new rights by watches of its own.
    eventually("the rights", || Ok((status(address, "/metrics", Some(&ours))? == 200).then_some(())))?;
    for (whose, token, expected) in [
        ("nobody's", None, 401),
        ("no token at all", Some("nonsense".to_owned()), 401),
        ("for the API server", Some(of("scraper", None)?), 200),
        ("for somebody else", Some(of("scraper", Some("vault"))?), 401),
        ("without the right", Some(of("outsider", Some("netpol-trace"))?), 403),
    ] {
        let got = status(address, "/metrics", token.as_deref())?;
        ensure!(got == expected, "a token {whose}: {got}, not {expected}");
    }
    ensure!(ask(address, "/metrics", Some(&ours))?.contains("netpol_trace_build_info"), "the metrics");
    ensure!(status(address, "/healthz", None)? == 200, "the kubelet has no token");

    // Clients that try many tokens cause few requests to the API server, and don't keep out a client that was let in before.
    let tries: Vec<_> =
        (0..60).map(|n| thread::spawn(move || status(address, "/metrics", Some(&format!("guess-{n}"))))).collect();
    ensure!(status(address, "/metrics", Some(&ours))? == 200, "clients without rights keep out the one that may");
    let mut refused = [0, 0];
    for one in tries {
        match one.join().map_err(|_| anyhow::anyhow!("a panic"))?? {
            401 => refused[0] += 1,
            429 => refused[1] += 1,
            other => anyhow::bail!("{other} to a guess"),
        }
    }
    ensure!(refused[0] >= 20 && refused[1] > 0, "{refused:?}");

    let run = agent.stop()?;
    ensure!(!run.stderr.contains("WARN") && !run.stderr.contains(&ours), "{}", run.stderr);

    // An agent without the right to ask lets nobody in, and names the rules that it lacks.
    let (agent, address) = start(&plane.account_kubeconfig(NAMESPACE, "powerless")?)?;
    ensure!(status(address, "/metrics", Some(&ours))? == 503, "let in without asking");
    let run = agent.stop()?;
    for rule in ["resources: [tokenreviews], verbs: [create]", "resources: [subjectaccessreviews], verbs: [create]"] {
        ensure!(run.stderr.contains(rule), "{rule} in {}", run.stderr);
    }
    Ok(())
}

/// An API server that can't be asked lets nobody in, and the log says why.
#[test]
fn nobody_is_let_in_when_the_server_is_away() -> Result<()> {
    require!(cluster::can_run(&[]));
    let dir = tempfile::tempdir()?;
    let kubeconfig = dir.path().join("kubeconfig");
    let nobody = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "nobody",
        "clusters": [{ "name": "nobody", "cluster": { "server": format!("http://{}", free()?) } }],
        "users": [{ "name": "nobody", "user": { "token": "a" } }],
        "contexts": [{ "name": "nobody", "context": { "cluster": "nobody", "user": "nobody" } }],
    });
    std::fs::write(&kubeconfig, nobody.to_string())?;
    let (agent, address) = start(&kubeconfig)?;
    ensure!(status(address, "/metrics", Some("a"))? == 503 && status(address, "/metrics", Some("a"))? == 503, "let in");
    let run = agent.stop()?;
    let messages = run.stderr.matches("/metrics refuses new clients").count();
    ensure!(messages == 1, "{messages} messages: {}", run.stderr);
    Ok(())
}
