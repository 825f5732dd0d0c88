//! `tail` on a real API server: with the right to read the agents' logs, and as a namespace's developer. `kubelet.py` stands in for the
//! kubelet between API server and agent, with the two endpoints that this needs.

mod live;
mod many;
mod rights;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::shared;
use netpol_trace_tests::process::KilledOnDrop;
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{PATIENCE, agent, cluster, eventually, has_program, require};
use serde_json::json;

use super::accounts::{self, READER, account, ask, bind, reader, roles};

const POD: &str = "netpol-trace-x7k2p";

/// A node whose agent has run before: its history is the log of `tail`'s own tests.
struct TailNode {
    plane: &'static ControlPlane,
    /// The agents' namespace.
    agents: &'static str,
    dir: tempfile::TempDir,
    listener: u16,
    _kubelet: KilledOnDrop,
    _agent: KilledOnDrop,
}

impl TailNode {
    /// Agents run in a namespace of the test's own.
    fn start(agents: &'static str, node: &str) -> Result<TailNode> {
        let plane = shared()?;
        let dir = tempfile::tempdir()?;
        for namespace in [agents, "staging", "qa-test"] {
            plane.namespace(namespace, &json!({}))?;
        }
        roles(plane, agents)?;
        account(plane, agents, "agent")?;
        bind(plane, agents, None, ("ClusterRole", "netpol-trace"), (agents, "agent"))?;

        let history = dir.path().join("history");
        std::fs::create_dir(&history)?;
        let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("../netpol-trace/tests/tail/log.jsonl");
        std::fs::copy(&log, history.join("0000000000001-05db8ac4-000001.jsonl"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let (agent, stderr) = start_agent(plane, agents, dir.path(), &history, listener)?;
        // The kubelet serves an earlier run's log and what the agent has written so far.
        std::fs::write(dir.path().join(POD), std::fs::read_to_string(&log)? + &stderr)?;
        let (kubelet, port) = start_kubelet(dir.path())?;
        objects(plane, port, agents, node, POD)?;
        Ok(TailNode { plane, agents, dir, listener, _kubelet: kubelet, _agent: agent })
    }

    fn tail(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
        let port = self.listener.to_string();
        let mut command = Command::new(agent::binary()?);
        command.args(["tail", "--agents-namespace", self.agents, "--tail-port", &port, "-o", "json", "--kubeconfig"]);
        Ok(command.arg(kubeconfig).args(arguments).stdin(Stdio::null()).output()?)
    }

    /// Makes a developer of namespace `staging` as docs/security.md says: two bindings, and the account whose token the developer uses.
    fn developer(&self, name: &str) -> Result<PathBuf> {
        let developer = ("staging", name);
        account(self.plane, developer.0, name)?;
        reader(self.plane, developer.0)?;
        bind(self.plane, name, Some(developer.0), ("ClusterRole", "netpol-trace-developer"), developer)?;
        bind(self.plane, name, Some(self.agents), ("Role", "netpol-trace-reach"), developer)?;
        let kubeconfig = self.plane.account_kubeconfig(developer.0, name)?;
        // The API server sees bindings by watches of its own.
        eventually("the developer's rights", || {
            let output = self.tail(&kubeconfig, &["-n", "staging", "--service-account"])?;
            Ok((!output.stdout.is_empty()).then_some(()))
        })?;
        Ok(kubeconfig)
    }
}

/// A node and its agent's pod, whose kubelet listens at `port`.
fn objects(plane: &ControlPlane, port: u16, namespace: &str, node: &str, pod: &str) -> Result<()> {
    plane.api().apply(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        },
    }))?;
    let labels = json!({ "app.kubernetes.io/name": "netpol-trace" });
    plane.api().apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": pod, "labels": labels },
        "spec": { "nodeName": node, "serviceAccountName": "agent", "containers": [{ "name": "agent", "image": "registry.example/agent:1" }] },
        "status": { "phase": "Running" },
    }))?;
    Ok(())
}

fn start_agent(
    plane: &ControlPlane,
    agents: &str,
    dir: &Path,
    history: &Path,
    port: u16,
) -> Result<(KilledOnDrop, String)> {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/manifests");
    let log = dir.join("agent.log");
    let mut agent = Command::new(agent::binary()?)
        .args([
            "agent",
            "--aggregation-window",
            "1s",
            "--hooks",
            "kfree_skb",
            "--tail-listen",
            &format!("127.0.0.1:{port}"),
            "--agents-namespace",
            agents,
        ])
        .arg("--history-dir")
        .arg(history)
        .arg("--manifests")
        .arg(manifests)
        // The account with which it asks the API server who may see what.
        .env("KUBECONFIG", plane.account_kubeconfig(agents, "agent")?)
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .spawn()
        .map(KilledOnDrop)?;
    let (mut first, mut stdout) = (String::new(), BufReader::new(agent.0.stdout.take().context("a pipe")?));
    stdout.read_line(&mut first)?;
    // An agent whose stdout is closed ends with the next record, which any lab's drop can cause.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    ensure!(first.contains("\"started\""), "{first}{}", std::fs::read_to_string(log)?);
    Ok((agent, first))
}

/// Requires what the control plane and `kubelet.py` require.
fn can_run_kubelet() -> Result<()> {
    has_program("openssl", "openssl")?;
    has_program("python3", "python3")?;
    cluster::can_run(&[])
}

fn start_kubelet(dir: &Path) -> Result<(KilledOnDrop, u16)> {
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
        .map(KilledOnDrop)?;
    let mut port = String::new();
    BufReader::new(kubelet.0.stdout.take().context("a pipe")?).read_line(&mut port)?;
    Ok((kubelet, port.trim().parse()?))
}

fn records(output: &Output) -> Result<Vec<Record>> {
    String::from_utf8_lossy(&output.stdout).lines().map(Record::parse).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn who_sees_what_through_the_api_server() -> Result<()> {
    require!(can_run_kubelet());
    let node = TailNode::start("tail-agents", "tail-node")?;

    // With the right to read logs: all records.
    let admin = node.plane.kubeconfig();
    let all = node.tail(&admin, &["-A"])?;
    ensure!(stderr(&all).contains("listening to 1 of 1 nodes: tail-node"), "{}", stderr(&all));
    let all = records(&all)?;
    ensure!(all.iter().filter(|record| record.is_drop()).count() == 22, "{all:?}");

    // A developer: the namespace's drops, with the peer as an address.
    let dev = node.developer("dev")?;
    let output = node.tail(&dev, &["-n", "staging", "--service-account"])?;
    let seen = records(&output)?;
    let theirs = |record: &Record| ["source", "destination"].iter().any(|end| record.pod(end).starts_with("staging/"));
    let expected: Vec<&str> = all.iter().filter(|r| r.is_drop() && theirs(r)).map(|r| r.text("/id")).collect();
    let drops: Vec<&str> = seen.iter().filter(|record| record.is_drop()).map(|record| record.text("/id")).collect();
    ensure!(!expected.is_empty() && drops == expected, "{drops:?} {expected:?}\n{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let foreign = ["frontend-7d9c8bf9d-x2lkp", "qa-test", "coredns", "worker-1\",\"kind\""];
    for foreign in foreign {
        ensure!(!text.contains(foreign), "{foreign} in {text}");
    }

    // But not other namespaces' drops, not the logs, and nothing without a token.
    let refused = node.tail(&dev, &["-n", "qa-test", "--service-account"])?;
    ensure!(refused.stdout.is_empty() && stderr(&refused).contains("forbidden"), "{}", stderr(&refused));
    ensure!(
        stderr(&refused).contains("The ClusterRole netpol-trace-developer, bound to you in"),
        "{}",
        stderr(&refused)
    );
    let logs = node.tail(&dev, &["-n", "staging"])?;
    ensure!(logs.stdout.is_empty() && stderr(&logs).contains("no answer from node tail-node"), "{}", stderr(&logs));
    ensure!(stderr(&logs).contains("; 0 of 1 agent answered; no answer from tail-node ("), "{}", stderr(&logs));
    ensure!(logs.status.code() == Some(1), "{}", logs.status);
    what_is_not_there(&node, &admin)?;
    // Without the right to read logs, the message names the other way.
    ensure!(stderr(&logs).matches("with -n NAMESPACE --service-account").count() == 1, "{}", stderr(&logs));
    let both = node.tail(&dev, &["--pod", "staging/a", "--pod", "qa-test/b", "--service-account"])?;
    ensure!(stderr(&both).contains("one namespace at a time"), "{}", stderr(&both));
    let token = |audience: &str| accounts::token(node.plane, "staging", READER, Some(audience));
    let own = token("netpol-trace")?;
    for (path, token, expected) in [
        ("/v1/records?namespace=staging", None, "401"),
        ("/v1/records?namespace=staging", Some("nonsense"), "401"),
        // The developer's token, but for another audience.
        ("/v1/records?namespace=staging", Some(token("vault")?.as_str()), "401"),
        ("/v1/records?namespace=staging", Some(own.as_str()), "200"),
        ("/v1/records?namespace=staging,qa-test", Some(own.as_str()), "403"),
        ("/v1/records", Some(own.as_str()), "403"),
    ] {
        let answer = ask((Ipv4Addr::LOCALHOST, node.listener).into(), path, token)?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{path}: {answer}");
    }

    follows(&node, &admin)
}

/// For a missing pod or namespace `tail` shows no records, and says what exists instead and how many agents answered.
fn what_is_not_there(node: &TailNode, admin: &Path) -> Result<()> {
    account(node.plane, "staging", "default")?;
    node.plane.api().apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "staging", "name": "db-0", "labels": { "app": "db" } },
        "spec": { "nodeName": "tail-node", "automountServiceAccountToken": false, "containers": [{ "name": "main", "image": "registry.example/db:1" }] },
    }))?;
    for (arguments, expected) in [
        (&["--pod", "staging/db-9"][..], "note: no pod staging/db-9; staging has db-0"),
        (&["-n", "staging", "--pod", "pod/db-9"], "note: no pod staging/db-9; staging has db-0"),
        (&["-n", "staging", "-l", "app=dbx"], "note: no pod with app=dbx in namespace staging; there are app=db"),
        (&["-n", "tail-stagin"], "note: no namespace tail-stagin; the namespaces are "),
    ] {
        let output = node.tail(admin, arguments)?;
        let stderr = stderr(&output);
        // A policy of its namespace may be the pod's.
        let kinds: Vec<_> = records(&output)?.iter().map(|record| record.text("/kind").to_owned()).collect();
        ensure!(kinds.iter().all(|kind| kind == "policy_change"), "{arguments:?}: {kinds:?}");
        ensure!(output.status.success() && stderr.contains(expected), "{arguments:?}: {stderr}");
        ensure!(
            stderr.contains("netpol-trace tail: no drops to or from ") && stderr.contains("; 1 of 1 agent answered\n"),
            "{stderr}"
        );
    }
    // Records that its node's agent has lost may be the pod's.
    let there = node.tail(admin, &["--pod", "staging/db-0", "--since", "87600h"])?;
    let kinds: Vec<_> = records(&there)?.iter().map(|record| record.text("/kind").to_owned()).collect();
    ensure!(kinds.iter().any(|kind| kind == "drop") && kinds.iter().any(|kind| kind == "loss"), "{kinds:?}");
    let drops = kinds.iter().filter(|kind| *kind == "drop").count();
    let stderr = stderr(&there);
    ensure!(stderr.contains(&format!("netpol-trace tail: {drops} drops (")) && !stderr.contains("no pod"), "{stderr}");
    ensure!(stderr.contains(" to or from staging/db-0 in the last 87600 h; 1 of 1 agent answered\n"), "{stderr}");
    Ok(())
}

/// A running `tail -f`, whose records are read as they come.
struct Following {
    _tail: KilledOnDrop,
    lines: Receiver<std::io::Result<String>>,
    stderr: PathBuf,
    seen: Vec<Record>,
}

impl Following {
    fn start(dir: &Path, agents: &str, kubeconfig: &Path, arguments: &[&str]) -> Result<Following> {
        let stderr = dir.join("tail.log");
        let mut tail = Command::new(agent::binary()?)
            .args(["tail", "--agents-namespace", agents, "-o", "json", "-f", "--kubeconfig"])
            .arg(kubeconfig)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr)?)
            .spawn()
            .map(KilledOnDrop)?;
        let stdout = BufReader::new(tail.0.stdout.take().context("a pipe")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line)));
        Ok(Following { _tail: tail, lines, stderr, seen: Vec::new() })
    }

    /// Reads until `done` is true for a record, and returns the time when that record came.
    fn until(&mut self, what: &str, mut done: impl FnMut(&[Record]) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if done(&self.seen) {
                return Ok(Instant::now());
            }
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.with_context(|| {
                let stderr = std::fs::read_to_string(&self.stderr).unwrap_or_default();
                format!("no sign of {what} among {:?}\n{stderr}", self.ids())
            })?;
            self.seen.push(Record::parse(&line?)?);
        }
    }

    fn has(&mut self, id: &str) -> Result<Instant> {
        self.until(id, |seen| seen.iter().any(|record| record.text("/id") == id))
    }

    fn ids(&self) -> Vec<&str> {
        self.seen.iter().map(|record| record.text("/id")).collect()
    }

    /// Fails if a record came twice.
    fn no_doubles(&self) -> Result<()> {
        let mut once = self.ids();
        once.sort_unstable();
        once.dedup();
        ensure!(once.len() == self.seen.len(), "{:?}", self.ids());
        Ok(())
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.stderr)?)
    }
}

/// Later lines of the log are shown, also after the container was restarted: without a gap or a duplicate.
fn follows(node: &TailNode, admin: &Path) -> Result<()> {
    let log = node.dir.path().join(POD);
    let mut tail = Following::start(node.dir.path(), node.agents, admin, &["-A"])?;
    let record = |run: &str, number: u32| {
        let time = format!("2026-11-21T12:51:{number:02}Z");
        format!(
            "{}\n",
            json!({ "schema": "netpol-trace/v1", "id": format!("{run}/{number}"), "run": run, "seq": number, "time": time, "kind": "loss", "stage": "sink", "reason": "test", "count": 1 })
        )
    };
    let append = |text: &str| std::fs::OpenOptions::new().append(true).open(&log)?.write_all(text.as_bytes());
    append(&record("a", 1))?;
    tail.has("a/1")?;
    // The container dies in the middle of a line and starts again; the old log is then the previous one.
    append("{\"schema\":\"netpol-tr")?;
    let old = std::fs::read_to_string(&log)?.replace("{\"schema\":\"netpol-tr", "") + &record("a", 2);
    std::fs::write(log.with_file_name(format!("{POD}.previous")), old + "{\"schema\":\"netpol-tr")?;
    let next = log.with_file_name("next");
    std::fs::write(&next, record("b", 3))?;
    std::fs::rename(next, &log)?;
    tail.has("b/3")?;
    ensure!(tail.ids().contains(&"a/2"), "{:?}", tail.ids());
    tail.no_doubles()
}
