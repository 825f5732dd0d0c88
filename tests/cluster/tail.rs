//! `tail` against a real API server: as who may read the agents' logs, and as a namespace's developer. The kubelet between
//! the API server and the agent is `kubelet.py`, which has the two endpoints that this needs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::{shared, skip};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{PATIENCE, agent};
use serde_json::json;

/// Where agents run; of this test alone, since others may have agents of their own.
const AGENTS: &str = "tail-agents";
const POD: &str = "netpol-trace-x7k2p";
const NODE: &str = "tail-node";

/// A process that ends with its owner.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node whose agent has run before: its history is the log of `tail`'s own tests.
struct Node {
    plane: &'static ControlPlane,
    dir: tempfile::TempDir,
    listener: u16,
    _kubelet: Ends,
    _agent: Ends,
}

impl Node {
    fn start() -> Result<Node> {
        let plane = shared()?;
        let dir = tempfile::tempdir()?;
        for namespace in [AGENTS, "staging", "qa-test"] {
            plane.namespace(namespace, &json!({}))?;
        }
        roles(plane)?;
        account(plane, AGENTS, "agent")?;
        bind(plane, "tail-reviewer", None, ("ClusterRole", "netpol-trace-reviewer"), (AGENTS, "agent"))?;

        let history = dir.path().join("history");
        std::fs::create_dir(&history)?;
        let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("../netpol-trace/tests/tail/log.jsonl");
        std::fs::copy(&log, history.join("0000000000001-05db8ac4-000001.jsonl"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let (agent, said) = start_agent(plane, dir.path(), &history, listener)?;
        // What the kubelet serves is what the agent has written so far, and an earlier run's log.
        std::fs::write(dir.path().join(POD), std::fs::read_to_string(&log)? + &said)?;
        let (kubelet, port) = start_kubelet(dir.path())?;
        objects(plane, port)?;
        Ok(Node { plane, dir, listener, _kubelet: kubelet, _agent: agent })
    }

    fn tail(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
        let port = self.listener.to_string();
        let mut command = Command::new(agent::binary()?);
        command.args(["tail", "--agents-namespace", AGENTS, "--tail-port", &port, "-o", "json", "--kubeconfig"]);
        Ok(command.arg(kubeconfig).args(arguments).stdin(Stdio::null()).output()?)
    }

    fn developer(&self) -> Result<PathBuf> {
        account(self.plane, "staging", "dev")?;
        let dev = ("staging", "dev");
        bind(self.plane, "tail-dev", Some("staging"), ("ClusterRole", "netpol-trace-developer"), dev)?;
        bind(self.plane, "tail-dev", Some(AGENTS), ("Role", "netpol-trace-reach"), dev)?;
        self.plane.account_kubeconfig("staging", "dev")
    }
}

/// The roles as they are published; the namespace of the agents is another here.
fn roles(plane: &ControlPlane) -> Result<()> {
    let manifest = include_str!("../../deploy/kustomize/components/tail/roles.yaml")
        .replace("namespace: netpol-trace", &format!("namespace: {AGENTS}"));
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    for document in manifest.split("\n---\n") {
        let path = match document.contains("kind: ClusterRole") {
            true => format!("{rbac}/clusterroles"),
            false => format!("{rbac}/namespaces/{AGENTS}/roles"),
        };
        plane.api().create_yaml(&path, document)?;
    }
    Ok(())
}

fn account(plane: &ControlPlane, namespace: &str, name: &str) -> Result<()> {
    let metadata = json!({ "namespace": namespace, "name": name });
    plane.api().apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata })).map(drop)
}

fn bind(plane: &ControlPlane, name: &str, namespace: Option<&str>, role: (&str, &str), to: (&str, &str)) -> Result<()> {
    let (kind, metadata) = match namespace {
        Some(namespace) => ("RoleBinding", json!({ "name": name, "namespace": namespace })),
        None => ("ClusterRoleBinding", json!({ "name": name })),
    };
    let object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1 },
        "subjects": [{ "kind": "ServiceAccount", "namespace": to.0, "name": to.1 }],
    });
    plane.api().apply(&object).map(drop)
}

/// The agent's node and pod, whose kubelet listens at `port`.
fn objects(plane: &ControlPlane, port: u16) -> Result<()> {
    plane.api().apply(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        },
    }))?;
    let labels = json!({ "app.kubernetes.io/name": "netpol-trace" });
    plane.api().apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": AGENTS, "name": POD, "labels": labels },
        "spec": { "nodeName": NODE, "serviceAccountName": "agent", "containers": [{ "name": "agent", "image": "registry.example/agent:1" }] },
        "status": { "phase": "Running" },
    }))?;
    Ok(())
}

fn start_agent(plane: &ControlPlane, dir: &Path, history: &Path, port: u16) -> Result<(Ends, String)> {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/manifests");
    let log = dir.join("agent.log");
    let mut agent = Command::new(agent::binary()?)
        .args([
            "agent",
            "--fold-window",
            "1s",
            "--hooks",
            "kfree_skb",
            "--tail-listen",
            &format!("127.0.0.1:{port}"),
            "--agents-namespace",
            AGENTS,
        ])
        .arg("--history-dir")
        .arg(history)
        .arg("--manifests")
        .arg(manifests)
        // As whom it asks who may see what.
        .env("KUBECONFIG", plane.account_kubeconfig(AGENTS, "agent")?)
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .spawn()
        .map(Ends)?;
    let mut first = String::new();
    BufReader::new(agent.0.stdout.take().context("a pipe")?).read_line(&mut first)?;
    ensure!(first.contains("\"started\""), "{first}{}", std::fs::read_to_string(log)?);
    Ok((agent, first))
}

fn start_kubelet(dir: &Path) -> Result<(Ends, u16)> {
    let (certificate, key) = (dir.join("kubelet.pem"), dir.join("kubelet.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=kubelet",
            "-days",
            "1",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/kubelet.py");
    let mut kubelet = Command::new("python3")
        .arg(script)
        .args([&certificate, &key, &dir.to_owned()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Ends)?;
    let mut port = String::new();
    BufReader::new(kubelet.0.stdout.take().context("a pipe")?).read_line(&mut port)?;
    Ok((kubelet, port.trim().parse()?))
}

fn records(output: &Output) -> Result<Vec<Record>> {
    String::from_utf8_lossy(&output.stdout).lines().map(Record::parse).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn who_sees_what_through_the_api_server() -> Result<()> {
    if skip("tail::who_sees_what_through_the_api_server", &[]) {
        return Ok(());
    }
    if Command::new("openssl").arg("version").output().and(Command::new("python3").arg("-V").output()).is_err() {
        netpol_trace_tests::skipped("tail::who_sees_what_through_the_api_server", "needs openssl and python3");
        return Ok(());
    }
    let node = Node::start()?;

    // By the logs: everything.
    let admin = node.plane.kubeconfig();
    let all = node.tail(&admin, &["-A"])?;
    ensure!(said(&all).contains("listening to 1 of 1 nodes: tail-node"), "{}", said(&all));
    let all = records(&all)?;
    ensure!(all.iter().filter(|record| record.is_drop()).count() == 22, "{all:?}");

    // A developer: their namespace's drops, the other end an address.
    let dev = node.developer()?;
    let output = node.tail(&dev, &["-n", "staging", "--service-account", "dev"])?;
    let seen = records(&output)?;
    let theirs = |record: &Record| ["source", "destination"].iter().any(|end| record.pod(end).starts_with("staging/"));
    let expected: Vec<&str> = all.iter().filter(|r| r.is_drop() && theirs(r)).map(|r| r.text("/id")).collect();
    let drops: Vec<&str> = seen.iter().filter(|record| record.is_drop()).map(|record| record.text("/id")).collect();
    ensure!(!expected.is_empty() && drops == expected, "{drops:?} {expected:?}\n{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let foreign = ["frontend-7d9c8bf9d-x2lkp", "qa-test", "coredns", "worker-1\",\"kind\""];
    for foreign in foreign {
        ensure!(!text.contains(foreign), "{foreign} in {text}");
    }

    // Nobody else's, not the logs, and nothing without a token.
    let refused = node.tail(&dev, &["-n", "qa-test", "--service-account", "dev"])?;
    ensure!(refused.stdout.is_empty() && said(&refused).contains("orbidden"), "{}", said(&refused));
    let logs = node.tail(&dev, &["-n", "staging"])?;
    ensure!(logs.stdout.is_empty() && said(&logs).contains("node tail-node does not answer"), "{}", said(&logs));
    let token = |audience: &str| -> Result<String> {
        let spec = json!({ "audiences": [audience] });
        let asked = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let made = node.plane.api().post("/api/v1/namespaces/staging/serviceaccounts/dev/token", &asked)?;
        Ok(made.pointer("/status/token").and_then(|token| token.as_str()).context("a token")?.to_owned())
    };
    let own = token("netpol-trace")?;
    for (path, token, expected) in [
        ("/v1/records?namespace=staging", None, "401"),
        ("/v1/records?namespace=staging", Some("nonsense"), "401"),
        // A token of theirs, but made for something else.
        ("/v1/records?namespace=staging", Some(token("vault")?.as_str()), "401"),
        ("/v1/records?namespace=staging", Some(own.as_str()), "200"),
        ("/v1/records?namespace=staging,qa-test", Some(own.as_str()), "403"),
        ("/v1/records", Some(own.as_str()), "403"),
    ] {
        let answer = ask(node.listener, path, token)?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{path}: {answer}");
    }

    follows(&node, &admin)
}

/// What is written to the log later is shown, and again after the container was started anew: without a gap or a double.
fn follows(node: &Node, admin: &Path) -> Result<()> {
    let log = node.dir.path().join(POD);
    let port = node.listener.to_string();
    let mut tail = Command::new(agent::binary()?)
        .args(["tail", "--agents-namespace", AGENTS, "--tail-port", &port, "-o", "json", "-A", "-f", "--kubeconfig"])
        .arg(admin)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Ends)?;
    let mut lines = BufReader::new(tail.0.stdout.take().context("a pipe")?).lines();
    let mut ids = Vec::new();
    let mut until = |id: &str| -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        for line in lines.by_ref() {
            ids.push(Record::parse(&line?)?.text("/id").to_owned());
            if ids.last().is_some_and(|last| last == id) {
                return Ok(ids.clone());
            }
            ensure!(Instant::now() < deadline, "no sign of {id}: {ids:?}");
        }
        anyhow::bail!("ended before {id}: {ids:?}")
    };
    let record = |run: &str, number: u32| {
        let time = format!("2026-11-21T12:51:{number:02}Z");
        format!(
            "{}\n",
            json!({ "schema": "netpol-trace/v1", "id": format!("{run}/{number}"), "run": run, "seq": number, "time": time, "kind": "loss", "stage": "sink", "reason": "test", "count": 1 })
        )
    };
    let append = |text: &str| std::fs::OpenOptions::new().append(true).open(&log)?.write_all(text.as_bytes());
    append(&record("a", 1))?;
    until("a/1")?;
    // The container dies with a last word and starts again: the old log is the previous one then.
    let old = std::fs::read_to_string(&log)? + &record("a", 2);
    std::fs::write(log.with_file_name(format!("{POD}.previous")), old)?;
    let next = log.with_file_name("next");
    std::fs::write(&next, record("b", 3))?;
    std::fs::rename(next, &log)?;
    let ids = until("b/3")?;
    let mut once = ids.clone();
    once.sort();
    once.dedup();
    ensure!(ids.iter().any(|id| id == "a/2") && once.len() == ids.len(), "{ids:?}");
    Ok(())
}

fn ask(port: u16, path: &str, token: Option<&str>) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n{token}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
