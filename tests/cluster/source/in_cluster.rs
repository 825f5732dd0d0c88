//! The agent as in a pod: without a kubeconfig, with the environment and files that a kubelet provides and updates.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::{self, Agent};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{cluster, eventually, has_program, require};
use serde_json::{Value, json};

use super::{ApiLab, NODE, failure, in_sync, policy};

/// Mounts `$1` where a pod has its service account, in a mount namespace of the agent's own.
const POD: &str = "
set -e
from=$1; shift
mount -t tmpfs none /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
mount --bind $from /run/secrets/kubernetes.io/serviceaccount
exec \"$@\"
";

/// Writes a token of the account as the kubelet does: by a rename.
fn issue(api_lab: &ApiLab, folder: &Path, account: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/lab/serviceaccounts/{account}/token");
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let answer = api_lab.plane.api().post(&path, &request)?;
    let token = answer.pointer("/status/token").and_then(Value::as_str).context("a token")?;
    fs::write(folder.join("token~"), token)?;
    Ok(fs::rename(folder.join("token~"), folder.join("token"))?)
}

#[test]
fn the_service_account_is_used_and_its_token_reread() -> Result<()> {
    require!(cluster::can_run(&[]));
    require!(has_program("unshare", "util-linux"));
    require!(if is_run() { Ok(()) } else { Err(missing("/var/run is not a link to /run")) });
    let mut api_lab = ApiLab::start()?;
    failure::account(&api_lab, "in-cluster", "nothing")?;
    let folder = tempfile::tempdir()?;
    fs::copy(api_lab.plane.dir().join("certificates/apiserver.crt"), folder.path().join("ca.crt"))?;
    fs::write(folder.path().join("namespace"), "lab")?;
    issue(&api_lab, folder.path(), "in-cluster")?;

    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", POD, "pod"]).arg(folder.path());
    command.arg(agent::binary()?).args(["agent", "--all-drops", "--node-name", NODE]);
    let address = api_lab.plane.address();
    command.env_remove("KUBECONFIG").env("HOME", folder.path());
    command.env("KUBERNETES_SERVICE_HOST", address.ip().to_string());
    command.env("KUBERNETES_SERVICE_PORT", address.port().to_string());
    let agent = Agent::spawn(command)?;
    agent.wait_for("all in sync as the service account", in_sync)?;
    let record = api_lab.send(&agent)?;
    assert_eq!(record.isolated_by("ingress"), ["lab/deny-server"], "{record}");

    // The account is recreated, so its first token is invalid. The server restarts, so every request needs a token.
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": "lab", "name": "in-cluster" } });
    api_lab.delete(&account)?;
    api_lab.apply(&account)?;
    api_lab.plane.restart_server()?;
    agent.wait_for("the server's refusal", |records| {
        let refused = |source: &Value| source["error"].to_string().contains("does not accept the credentials");
        records
            .iter()
            .filter(|record| record.kind() == "status")
            .any(|status| status.list("/sources").iter().any(refused))
    })?;
    issue(&api_lab, folder.path(), "in-cluster")?;
    api_lab.apply(&policy("deny-more", "server"))?;
    eventually("the policy made since, by the new token", || {
        let record = api_lab.send(&agent)?;
        Ok((record.isolated_by("ingress").len() == 2).then_some(()))
    })?;
    agent.wait_for("all in sync by the new token", in_sync)?;
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}

/// True if /var/run, below which pods have their files, is /run.
fn is_run() -> bool {
    fs::canonicalize("/var/run").is_ok_and(|path| path == Path::new("/run"))
}
