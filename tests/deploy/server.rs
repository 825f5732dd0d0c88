//! A real API server accepts the manifests, and they give the documented rights.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::cluster::api::Api;
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::programs::KUBECTL;
use netpol_trace_tests::cluster::{self, built};
use netpol_trace_tests::{eventually, require};
use serde_json::{Value, json};

use super::render::{Objects, deploy, kustomize};

const OVERLAYS: [&str; 5] = [
    "overlays/default",
    "overlays/host-network",
    "overlays/host-network-metrics",
    "overlays/restricted",
    "overlays/developers",
];

fn kubectl(plane: &ControlPlane, arguments: &[&str], folder: &Path) -> Result<String> {
    let mut command = Command::new(built(&KUBECTL)?);
    command.arg("--kubeconfig").arg(plane.kubeconfig()).args(arguments).arg(folder);
    let output = command.output()?;
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?}: {}\n{printed}", output.status);
    }
    Ok(printed)
}

fn namespace(plane: &ControlPlane, name: &str, labels: &Value) -> Result<()> {
    let metadata = json!({ "name": name, "labels": labels });
    plane.api().apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata })).map(drop)
}

/// A client with the rights of a ServiceAccount.
fn account(plane: &ControlPlane, namespace: &str, name: &str) -> Result<Api> {
    Api::connect(&kubeconfig(plane, namespace, name)?)
}

fn kubeconfig(plane: &ControlPlane, namespace: &str, name: &str) -> Result<PathBuf> {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let answer = plane.api().post(&path, &request)?;
    let token = answer.pointer("/status/token").and_then(Value::as_str).context("a token")?;
    plane.kubeconfig_with(&format!("{namespace}-{name}"), token)
}

/// A control plane with the overlay's namespace, which dry runs need.
fn installed(overlay: &str) -> Result<(&'static ControlPlane, Objects)> {
    let plane = cluster::shared()?;
    let objects = kustomize(&built(&KUBECTL)?, overlay)?;
    plane.api().apply(&objects["Namespace netpol-trace"])?;
    Ok((plane, objects))
}

#[test]
fn the_server_takes_every_overlay() -> Result<()> {
    require!(cluster::can_run(&[KUBECTL]));
    for overlay in OVERLAYS {
        let (plane, objects) = installed(overlay)?;
        let folder = deploy().join("kustomize").join(overlay);
        let printed = kubectl(plane, &["apply", "--dry-run=server", "--validate=strict", "-k"], &folder)?;
        for object in objects.keys() {
            let (kind, name) = object.split_once(' ').context("kind and name")?;
            let line = printed.lines().find(|line| {
                let kind = kind.to_lowercase();
                line.starts_with(&kind) && line.contains(&format!("/{name} ")) && line.ends_with("(server dry run)")
            });
            assert!(line.is_some(), "{overlay}: nothing of {object} in\n{printed}");
        }
        // Other tests made some of the objects without kubectl.
        let warnings =
            printed.lines().filter(|line| line.starts_with("Warning") && !line.contains("last-applied-configuration"));
        assert_eq!(warnings.collect::<Vec<_>>(), Vec::<&str>::new(), "{overlay}");
    }
    Ok(())
}

/// Pod Security admits the DaemonSet's pods into their namespace, and not into one of level baseline.
#[test]
fn pod_security() -> Result<()> {
    require!(cluster::can_run(&[KUBECTL]));
    for overlay in OVERLAYS {
        let (plane, objects) = installed(overlay)?;
        let pod = |namespace: &str| {
            let template = &objects["DaemonSet netpol-trace"]["spec"]["template"];
            let mut spec = template["spec"].clone();
            // The next test is about the account.
            spec["serviceAccountName"] = "default".into();
            spec["automountServiceAccountToken"] = false.into();
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "agent", "namespace": namespace }, "spec": spec })
        };
        namespace(plane, "baseline", &json!({ "pod-security.kubernetes.io/enforce": "baseline" }))?;
        let create = |namespace: &str| {
            let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace } });
            plane.api().apply(&account)?;
            plane.api().post(&format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), &pod(namespace))
        };
        create("netpol-trace").with_context(|| overlay)?;
        let refused = format!("{:#}", create("baseline").expect_err("baseline refuses BPF"));
        assert!(refused.contains("violates PodSecurity") && refused.contains("BPF"), "{overlay}: {refused}");
    }
    Ok(())
}

/// The account may read what docs/security.md lists, and nothing else.
#[test]
fn the_account_may_read_and_nothing_else() -> Result<()> {
    require!(cluster::can_run(&[KUBECTL]));
    let (plane, objects) = installed("overlays/default")?;
    for name in ["ServiceAccount netpol-trace", "ClusterRole netpol-trace", "ClusterRoleBinding netpol-trace"] {
        plane.api().apply(&objects[name])?;
    }
    let agent = account(plane, "netpol-trace", "netpol-trace")?;
    eventually("the account's first right", || Ok(agent.get("/api/v1/pods").ok()))?;
    for path in [
        "/api/v1/pods",
        "/api/v1/namespaces",
        "/api/v1/nodes",
        "/api/v1/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/networking.k8s.io/v1/networkpolicies",
    ] {
        let list = agent.get(path)?;
        assert!(list["items"].is_array(), "{path}: {list}");
    }
    let metadata = json!({ "name": "intruder", "namespace": "netpol-trace" });
    let forbidden = |result: Result<Value>, what: &str| {
        let error = format!("{:#}", result.expect_err(what));
        assert!(error.contains("forbidden"), "{what}: {error}");
    };
    for path in ["/api/v1/secrets", "/api/v1/configmaps", "/api/v1/events", "/apis/apps/v1/daemonsets"] {
        forbidden(agent.get(path), path);
    }
    for (path, kind, version) in [
        ("/api/v1/namespaces/netpol-trace/pods", "Pod", "v1"),
        ("/api/v1/namespaces/netpol-trace/configmaps", "ConfigMap", "v1"),
        ("/apis/networking.k8s.io/v1/namespaces/netpol-trace/networkpolicies", "NetworkPolicy", "networking.k8s.io/v1"),
    ] {
        forbidden(agent.post(path, &json!({ "apiVersion": version, "kind": kind, "metadata": metadata })), path);
    }
    Ok(())
}

/// With that account the agent syncs every source.
#[test]
fn the_agent_needs_no_more() -> Result<()> {
    require!(cluster::can_run(&[KUBECTL]));
    let (plane, objects) = installed("overlays/default")?;
    for name in ["ServiceAccount netpol-trace", "ClusterRole netpol-trace", "ClusterRoleBinding netpol-trace"] {
        plane.api().apply(&objects[name])?;
    }
    let kubeconfig = kubeconfig(plane, "netpol-trace", "netpol-trace")?;
    let account = Api::connect(&kubeconfig)?;
    eventually("the account's first right", || Ok(account.get("/api/v1/pods").ok()))?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, objects["ConfigMap netpol-trace"]["data"]["config.yaml"].as_str().context("a file")?)?;
    let (config, kubeconfig) = (config.to_string_lossy(), kubeconfig.to_string_lossy());
    for peers in ["watch", "lookup"] {
        let arguments = ["--config", &config, "--kubeconfig", &kubeconfig, "--node-name", "a", "--peers", peers];
        let agent = Agent::start(&arguments)?;
        agent.wait_for("every source in sync", |records| {
            let status = records.iter().rfind(|record| record.kind() == "status");
            let sources = status.map(|status| status.list("/sources")).unwrap_or_default();
            !sources.is_empty() && sources.iter().all(|source| source["synced"] == true)
        })?;
        let run = agent.stop()?;
        assert!(!run.stderr.contains("forbidden"), "{peers}: {}", run.stderr);
    }
    Ok(())
}

/// One command makes what a namespace's developers need, as docs/security.md has it.
#[test]
fn a_namespace_of_developers_is_one_command() -> Result<()> {
    require!(cluster::can_run(&[KUBECTL]));
    const NAMESPACE: &str = "developers-of-one";
    let (plane, objects) = installed("overlays/developers")?;
    plane.api().apply(&objects["ClusterRole netpol-trace-drops-reader"])?;
    namespace(plane, NAMESPACE, &json!({}))?;
    let printed = kubectl(plane, &["apply", "-n", NAMESPACE, "-k"], &deploy().join("kustomize/developer-namespace"))?;
    assert_eq!(printed.matches("netpol-trace-reader created").count(), 2, "{printed}");
    let reader = account(plane, NAMESPACE, "netpol-trace-reader")?;
    let may = |namespace: &str| -> Result<bool> {
        let attributes =
            json!({ "namespace": namespace, "verb": "get", "group": "netpol-trace.io", "resource": "drops" });
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        Ok(reader.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review)?["status"]["allowed"] == true)
    };
    eventually("the account's right", || Ok(may(NAMESPACE)?.then_some(())))?;
    assert!(!may("default")?);
    Ok(())
}

/// One command removes the installation.
#[test]
fn uninstall_leaves_nothing() -> Result<()> {
    require!(cluster::can_run(&[KUBECTL]));
    // In a namespace of its own: other tests use the overlay's.
    let plane = cluster::shared()?;
    namespace(plane, "removed", &json!({}))?;
    let dir = tempfile::tempdir()?;
    let base = deploy().join("kustomize/base");
    let copy = dir.path().join("base");
    std::fs::create_dir(&copy)?;
    for entry in std::fs::read_dir(&base)? {
        let path = entry?.path();
        std::fs::copy(&path, copy.join(path.file_name().context("a name")?))?;
    }
    let overlay = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: removed\nnamePrefix: removed-\nresources: [base]\n";
    std::fs::write(dir.path().join("kustomization.yaml"), overlay)?;
    kubectl(plane, &["apply", "-k"], dir.path())?;
    let ours = "labelSelector=app.kubernetes.io/part-of%3Dnetpol-trace";
    let lists = [
        "/api/v1/namespaces/removed/configmaps",
        "/api/v1/namespaces/removed/serviceaccounts",
        "/apis/apps/v1/namespaces/removed/daemonsets",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    ];
    let names = || -> Result<Vec<String>> {
        let mut names = Vec::new();
        for path in lists {
            let list = plane.api().get(&format!("{path}?{ours}"))?;
            let items = list["items"].as_array().context("a list")?;
            names.extend(items.iter().filter_map(|item| item["metadata"]["name"].as_str()).map(str::to_owned));
        }
        Ok(names.into_iter().filter(|name| name.starts_with("removed-")).collect())
    };
    assert_eq!(names()?.len(), 6);
    kubectl(plane, &["delete", "-k"], dir.path())?;
    assert_eq!(names()?, Vec::<String>::new());
    Ok(())
}
