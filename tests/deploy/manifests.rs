//! kustomize and the chart make the same objects, and the agent accepts both.

use std::process::Command;

use anyhow::{Context, Result};
use netpol_trace_tests::cluster::built;
use netpol_trace_tests::cluster::programs::{HELM, KUBECTL};
use netpol_trace_tests::{agent, require};
use serde_json::Value;

use super::render::{Objects, deploy, documents, helm, kustomize};

/// Each overlay, and the chart's values that make the same.
const VARIANTS: [(&str, &[&str]); 5] = [
    ("overlays/default", &[]),
    (
        "overlays/host-network",
        &[
            "hostNetwork=true",
            "capabilities.netAdmin=true",
            "capabilities.netRaw=true",
            "config.hooks=[\"kfree_skb\",\"tc\"]",
        ],
    ),
    (
        "overlays/host-network-metrics",
        &[
            "hostNetwork=true",
            "capabilities.netAdmin=true",
            "capabilities.netRaw=true",
            "config.hooks=[\"kfree_skb\",\"tc\"]",
            "listen.address=\"$(POD_IP)\"",
        ],
    ),
    ("overlays/restricted", &["capabilities.syslog=false", "state.hostPath=\"\""]),
    ("overlays/developers", &["tail.enabled=true"]),
];

/// Removes what may differ: labels of the tool, and the namespace, which the chart leaves to the user (README has the lines).
fn comparable(mut objects: Objects) -> Objects {
    objects.retain(|key, _| !key.starts_with("Namespace "));
    for object in objects.values_mut() {
        for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
            if let Some(Value::Object(labels)) = object.pointer_mut(labels) {
                assert!(labels.remove("app.kubernetes.io/managed-by").is_some(), "{labels:?}");
                assert_eq!(labels.len(), 5, "the six labels: {labels:?}");
            }
        }
        if let Some(Value::String(text)) = object.pointer_mut("/data/config.yaml") {
            *text = text.trim_end().to_owned();
        }
    }
    objects
}

#[test]
fn kustomize_and_helm_make_the_same_objects() -> Result<()> {
    let (kubectl, chart) = (require!(built(&KUBECTL)), require!(built(&HELM)));
    for (overlay, values) in VARIANTS {
        let (one, other) = (comparable(kustomize(&kubectl, overlay)?), comparable(helm(&chart, values)?));
        let (names, others): (Vec<_>, Vec<_>) = (one.keys().collect(), other.keys().collect());
        assert_eq!(names, others, "{overlay}");
        for (name, object) in &one {
            let pretty = |object: &Value| serde_json::to_string_pretty(object);
            assert_eq!(pretty(object)?, pretty(&other[name])?, "{overlay}: {name}");
        }
    }
    Ok(())
}

/// A component on top of the base is the chart's value.
#[test]
fn components_are_the_charts_values() -> Result<()> {
    let (kubectl, chart) = (require!(built(&KUBECTL)), require!(built(&HELM)));
    let dir = tempfile::tempdir()?;
    let folder = dir.path().canonicalize()?;
    // kustomize takes relative paths only.
    let up: String = folder.components().skip(1).map(|_| "../").collect();
    let kustomize_folder = deploy().join("kustomize").canonicalize()?;
    let below = format!("{up}{}", kustomize_folder.strip_prefix("/")?.display());
    for (component, value) in [
        ("events", "rbac.events=true"),
        ("pod-monitor", "podMonitor.enabled=true"),
        ("survive-restart", "surviveRestart=true"),
    ] {
        let text = format!("resources: [{below}/base]\ncomponents: [{below}/components/{component}]\n");
        std::fs::write(folder.join("kustomization.yaml"), text)?;
        let (one, other) = (kustomize(&kubectl, &folder.to_string_lossy())?, helm(&chart, &[value])?);
        let (one, other) = (comparable(one), comparable(other));
        assert_eq!(one, other, "{component}");
        if let Some(monitor) = one.get("PodMonitor netpol-trace") {
            // Its port is one of the agents'.
            let port = monitor.pointer("/spec/podMetricsEndpoints/0/port").context("a port")?;
            let ports = container(&one)?["ports"].as_array().context("ports")?;
            assert!(ports.iter().any(|known| known["name"] == *port), "{port}: {ports:?}");
        }
    }
    Ok(())
}

/// The folder for a namespace of developers makes the same objects as the chart.
#[test]
fn a_namespace_of_developers_is_the_charts_value() -> Result<()> {
    let (kubectl, chart) = (require!(built(&KUBECTL)), require!(built(&HELM)));
    let developers = r#"[{"kind":"Group","name":"developers","apiGroup":"rbac.authorization.k8s.io"}]"#;
    let namespaces = format!(r#"tail.namespaces=[{{"name":"staging","developers":{developers}}}]"#);
    let mut other = comparable(helm(&chart, &["tail.enabled=true", &namespaces])?);
    for (name, role) in [("developers", "developer"), ("reach", "reach")] {
        let binding = other.remove(&format!("RoleBinding netpol-trace-{name}")).context(name)?;
        assert_eq!(binding["roleRef"]["name"], format!("netpol-trace-{role}"));
        assert_eq!(binding["subjects"], serde_json::from_str::<Value>(developers)?);
        let namespace = if name == "reach" { "netpol-trace" } else { "staging" };
        assert_eq!(binding["metadata"]["namespace"], namespace);
    }
    let folder = comparable(kustomize(&kubectl, "developer-namespace")?);
    assert_eq!(
        folder.keys().collect::<Vec<_>>(),
        ["RoleBinding netpol-trace-reader", "ServiceAccount netpol-trace-reader"]
    );
    for (name, object) in folder {
        let mut chart = other.remove(&name).context(name)?;
        // `kubectl apply -n` adds the namespace; a subject without one has the binding's.
        for pointer in ["/metadata", "/subjects/0"] {
            if let Some(Value::Object(fields)) = chart.pointer_mut(pointer) {
                assert_eq!(fields.remove("namespace"), Some("staging".into()));
            }
        }
        assert_eq!(object, chart);
    }
    // Without the namespace the chart makes what the overlay does.
    let plain = comparable(kustomize(&kubectl, "overlays/developers")?);
    assert_eq!(plain.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    Ok(())
}

/// All variants as kustomize makes them.
fn overlays() -> Result<Vec<(&'static str, Objects)>> {
    let kubectl = built(&KUBECTL)?;
    VARIANTS.iter().map(|(overlay, _)| Ok((*overlay, kustomize(&kubectl, overlay)?))).collect()
}

fn container(objects: &Objects) -> Result<&Value> {
    objects["DaemonSet netpol-trace"].pointer("/spec/template/spec/containers/0").context("a container")
}

#[test]
fn the_container_is_confined() -> Result<()> {
    for (overlay, objects) in require!(overlays()) {
        let pod = &objects["DaemonSet netpol-trace"]["spec"]["template"]["spec"];
        let security = &container(&objects)?["securityContext"];
        for (field, value) in [
            ("privileged", Value::Bool(false)),
            ("allowPrivilegeEscalation", Value::Bool(false)),
            ("readOnlyRootFilesystem", Value::Bool(true)),
        ] {
            assert_eq!(security[field], value, "{overlay}: {field}");
        }
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{overlay}");
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]), "{overlay}");
        assert_eq!((&pod["hostPID"], &pod["hostIPC"]), (&Value::Null, &Value::Null), "{overlay}");
        assert_eq!(pod["hostNetwork"] == true, overlay.contains("host-network"));
        assert_eq!(pod["tolerations"], serde_json::json!([{"operator": "Exists"}]));
        // The page says of each capability in which overlay it is.
        let page = std::fs::read_to_string(deploy().with_file_name("docs/security.md"))?;
        for capability in security["capabilities"]["add"].as_array().context("capabilities")? {
            let name = capability.as_str().context("a name")?;
            let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.with_context(|| format!("docs/security.md has nothing of {name}"))?;
            let short = overlay.trim_start_matches("overlays/").trim_end_matches("-metrics");
            assert!(row.contains("all overlays") || row.contains(short), "{overlay}: {row}");
        }
    }
    Ok(())
}

/// The rights are reading and asking the API server about callers, and docs/security.md justifies each.
#[test]
fn rbac_is_what_the_page_says() -> Result<()> {
    for (overlay, objects) in require!(overlays()) {
        let page = std::fs::read_to_string(deploy().with_file_name("docs/security.md"))?;
        for rule in objects["ClusterRole netpol-trace"]["rules"].as_array().context("rules")? {
            let group = rule["apiGroups"][0].as_str().context("a group")?;
            for resource in rule["resources"].as_array().context("resources")? {
                let resource = resource.as_str().context("a resource")?;
                let policies = ["cilium.io", "crd.projectcalico.org", "policy.networking.k8s.io", "projectcalico.org"];
                let own = !policies.contains(&group);
                let known =
                    page.contains(&format!("\n| {resource}")) || (!own && page.contains("\n| other policy APIs"));
                assert!(known, "docs/security.md has no row for {resource} {group}");
                assert!(!["*", "secrets", "configmaps"].contains(&resource), "{rule}");
            }
        }
        // The account has no other binding, in its own namespace neither.
        let bound = objects.iter().filter(|(key, _)| key.contains("RoleBinding ")).map(|(key, _)| key.as_str());
        assert_eq!(bound.collect::<Vec<_>>(), ["ClusterRoleBinding netpol-trace"], "{overlay}");
    }
    Ok(())
}

/// The agent accepts the container's arguments and the ConfigMap: it fails only at the manifests, which don't exist.
#[test]
fn the_agent_takes_its_arguments_and_configuration() -> Result<()> {
    for (overlay, objects) in require!(overlays()) {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("config.yaml");
        std::fs::write(&config, objects["ConfigMap netpol-trace"]["data"]["config.yaml"].as_str().context("a file")?)?;
        let arguments = container(&objects)?["args"].as_array().context("arguments")?.clone();
        let arguments = arguments.iter().filter_map(Value::as_str).map(|argument| {
            let argument = argument.replace("/etc/netpol-trace/config.yaml", &config.to_string_lossy());
            let argument = argument.replace("/var/lib/netpol-trace", &dir.path().to_string_lossy());
            let argument = argument.replace("/var/log/netpol-trace", &dir.path().join("history").to_string_lossy());
            argument.replace("$(POD_IP)", "127.0.0.1")
        });
        let output = Command::new(agent::binary()?).args(arguments).args(["--manifests", "/no/such/file"]).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("/no/such/file"), "{overlay}: {stderr}");
    }
    Ok(())
}

#[test]
fn versions_are_the_workspaces() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let chart = &documents(&std::fs::read_to_string(deploy().join("helm/netpol-trace/Chart.yaml"))?)?[0];
    assert_eq!((chart["version"].as_str(), chart["appVersion"].as_str()), (Some(version), Some(version)));
    for file in
        ["base/kustomization.yaml", "components/pod-monitor/podmonitor.yaml", "developer-namespace/kustomization.yaml"]
    {
        let text = std::fs::read_to_string(deploy().join("kustomize").join(file))?;
        let versions = text.lines().filter(|line| line.contains("version: ") || line.contains("newTag: "));
        for line in versions.filter(|line| !line.contains("apiVersion: ") && !line.contains(" version: v")) {
            assert!(line.ends_with(version), "{file}: {line}");
        }
    }
    Ok(())
}

/// With the release's values filled in, as krew-release-bot does.
#[test]
fn the_krew_manifest_is_one() -> Result<()> {
    let text = std::fs::read_to_string(deploy().join("krew/netpol-trace.yaml"))?;
    let mut filled = String::new();
    for line in text.lines() {
        match line.trim().strip_prefix("{{addURIAndSha \"").and_then(|rest| rest.split_once('"')) {
            Some((uri, _)) => {
                let pad = " ".repeat(line.len() - line.trim_start().len());
                filled += &format!("{pad}uri: {uri}\n{pad}sha256: {}\n", "0".repeat(64));
            }
            None => filled += &format!("{line}\n"),
        }
    }
    let plugin = documents(&filled.replace("{{ .TagName }}", "v0.1.0"))?.remove(0);
    assert_eq!((&plugin["kind"], &plugin["metadata"]["name"]), (&"Plugin".into(), &"netpol-trace".into()));
    let short = plugin["spec"]["shortDescription"].as_str().context("a description")?;
    assert!(short.len() <= 50 && !short.ends_with('.'), "krew's rule: {short}");
    for platform in plugin["spec"]["platforms"].as_array().context("platforms")? {
        // A dash in a plugin's name is an underscore in its program's.
        assert_eq!(platform["bin"], "kubectl-netpol_trace");
        assert!(
            platform["uri"].as_str().is_some_and(|uri| uri.starts_with("https://") && uri.contains("/v0.1.0/")),
            "{platform}"
        );
    }
    Ok(())
}
