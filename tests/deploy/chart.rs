//! The chart by itself: lint, options, and values that it refuses.

use std::process::Command;

use anyhow::{Context, Result};
use netpol_trace_tests::cluster::programs::HELM;
use netpol_trace_tests::{cluster::built, require};

use super::render::{deploy, documents, helm, template, template_in};

#[test]
fn lint() -> Result<()> {
    let program = require!(built(&HELM));
    let output =
        Command::new(program).args(["lint", "--strict", "--quiet"]).arg(deploy().join("helm/netpol-trace")).output()?;
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn values_that_are_wrong_are_refused_by_name() -> Result<()> {
    let program = require!(built(&HELM));
    for (value, named) in [
        ("hostNetwrok=true", "hostNetwrok"),
        ("hostNetwork=\"yes\"", "hostNetwork"),
        ("listen.port=70000", "port"),
        ("capabilities.sysAdmin=true", "sysAdmin"),
        ("image.digest=\"latest\"", "digest"),
        ("state.hostPath=\"run/netpol-trace\"", "hostPath"),
        ("history.mib=0", "mib"),
        ("history.group=\"adm\"", "group"),
        ("supplementalGroups=[\"adm\"]", "supplementalGroups"),
        // The API server accepts at most 31 bits.
        ("history.group=4294967294", "group"),
        ("tail.namespaces=[{\"name\":\"Staging\",\"developers\":[]}]", "name"),
        ("tail.namespaces=[{\"name\":\"a\\nb: c\",\"developers\":[]}]", "name"),
        ("tail.reachableBy=[null]", "reachableBy"),
        ("listen.scrapers=[{\"kind\":\"ServiceAccount\",\"name\":\"prometheus\"}]", "namespace"),
        ("listen.scrapers=[{\"kind\":\"Account\",\"name\":\"prometheus\"}]", "kind"),
        ("listen.address=\"127.0.0.1\"", "without hostNetwork"),
        ("listen.address=\"[::1]\"", "without hostNetwork"),
        ("tail.port=\"http\"", "port"),
        ("tail.namespaces=[{\"name\":\"staging\"}]", "developers"),
        ("listen.rbac=false", "rbac"),
        ("podMonitor.interval=\"often\"", "interval"),
        ("prometheusRule.labels={\"release\":1}", "release"),
        ("rbac.otherPolicies={\"cilium.io\":\"all\"}", "cilium.io"),
    ] {
        let output = template(&program, &[value])?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(named), "{value}: {stderr}");
    }
    Ok(())
}

/// Names that YAML reads as numbers or booleans are strings in each object.
#[test]
fn namespaces_and_releases_may_have_any_name() -> Result<()> {
    let program = require!(built(&HELM));
    for name in ["123", "1e3", "no", "on", "true", "null", "0x10"] {
        let values = [
            format!("fullnameOverride=\"{name}\""),
            format!("serviceAccount.name=\"{name}\""),
            format!("priorityClassName=\"{name}\""),
            format!("tail.namespaces=[{{\"name\":\"{name}\",\"developers\":[]}}]"),
        ];
        let mut values: Vec<&str> = values.iter().map(String::as_str).collect();
        values.extend(["tail.enabled=true", "podMonitor.enabled=true", "prometheusRule.enabled=true"]);
        values.extend(["networkPolicy.enabled=true"]);
        let output = template_in(&program, name, &values)?;
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        for object in documents(&String::from_utf8_lossy(&output.stdout))? {
            let metadata = &object["metadata"];
            assert!(metadata["name"].is_string(), "{name}: {metadata}");
            assert!(metadata["namespace"].is_string() || metadata.get("namespace").is_none(), "{name}: {metadata}");
            for subject in object["subjects"].as_array().into_iter().flatten() {
                assert!(subject["name"].is_string() && subject["namespace"].is_string(), "{name}: {subject}");
            }
            if object["kind"] == "DaemonSet" {
                let pod = &object["spec"]["template"]["spec"];
                for field in
                    [&pod["serviceAccountName"], &pod["priorityClassName"], &pod["volumes"][0]["configMap"]["name"]]
                {
                    assert_eq!(field, name);
                }
            }
        }
    }
    Ok(())
}

/// With hostNetwork and a loopback listener the probes use the loopback address, else the pod's address.
#[test]
fn probes_go_where_the_agent_listens() -> Result<()> {
    let program = require!(built(&HELM));
    for (address, host_network, host) in [
        ("", false, None),
        ("", true, Some("127.0.0.1")),
        ("127.0.0.1", true, Some("127.0.0.1")),
        ("[::1]", true, Some("::1")),
        ("$(POD_IP)", true, None),
        ("0.0.0.0", false, None),
    ] {
        let values = [format!("listen.address=\"{address}\""), format!("hostNetwork={host_network}")];
        let objects = helm(&program, &values.each_ref().map(String::as_str))?;
        let container = &objects["DaemonSet netpol-trace"]["spec"]["template"]["spec"]["containers"][0];
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["host"].as_str(), host, "{probe} of {address:?}");
        }
    }
    Ok(())
}

#[test]
fn options_make_their_objects() -> Result<()> {
    let program = require!(built(&HELM));
    let kinds = |values: &[&str]| -> Result<Vec<String>> { Ok(helm(&program, values)?.into_keys().collect()) };
    let plain = kinds(&[])?;
    let more = kinds(&["podMonitor.enabled=true", "prometheusRule.enabled=true", "networkPolicy.enabled=true"])?;
    let added: Vec<&String> = more.iter().filter(|object| !plain.contains(object)).collect();
    assert_eq!(
        added,
        [
            "ClusterRoleBinding netpol-trace-scraper",
            "NetworkPolicy netpol-trace",
            "PodMonitor netpol-trace",
            "PrometheusRule netpol-trace",
            "Secret netpol-trace-scraper",
            "ServiceAccount netpol-trace-scraper"
        ]
    );
    let scrapers =
        "listen.scrapers=[{\"kind\":\"ServiceAccount\",\"name\":\"prometheus\",\"namespace\":\"monitoring\"}]";
    let scraped = kinds(&[scrapers])?;
    let added: Vec<&String> = scraped.iter().filter(|object| !plain.contains(object)).collect();
    assert_eq!(added, ["ClusterRoleBinding netpol-trace-metrics"]);
    let tail = kinds(&["tail.enabled=true", "tail.reachableBy=[{\"kind\":\"Group\",\"name\":\"developers\"}]"])?;
    let added: Vec<&String> = tail.iter().filter(|object| !plain.contains(object)).collect();
    assert_eq!(
        added,
        [
            "ClusterRole netpol-trace-developer",
            "ClusterRole netpol-trace-drops-reader",
            "Role netpol-trace-reach",
            "RoleBinding netpol-trace-reach"
        ]
    );
    let rules = |values: &[&str]| -> Result<Option<usize>> {
        Ok(helm(&program, values)?["ClusterRole netpol-trace"]["rules"].as_array().map(Vec::len))
    };
    assert_eq!(rules(&["rbac.events=true"])?, rules(&[])?.map(|rules| rules + 1));
    let none = kinds(&["rbac.create=false", "serviceAccount.create=false"])?;
    assert_eq!(none, ["ConfigMap netpol-trace", "DaemonSet netpol-trace"]);

    let objects = helm(&program, &["history.enabled=true", "history.mib=256", "history.hostPath=\"\""])?;
    let pod = &objects["DaemonSet netpol-trace"]["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].to_string();
    assert!(arguments.contains("--history-mib=256") && !arguments.contains("--tail-listen"), "{arguments}");
    assert_eq!(pod["volumes"][2], serde_json::json!({ "name": "history", "emptyDir": {} }));
    assert_eq!(pod["securityContext"], serde_json::Value::Null, "no groups");

    let objects = helm(&program, &["history.enabled=true", "history.group=4", "supplementalGroups=[101,4]"])?;
    let pod = &objects["DaemonSet netpol-trace"]["spec"]["template"]["spec"];
    assert!(pod["containers"][0]["args"].to_string().contains("--history-group=4"), "{pod}");
    assert_eq!(pod["securityContext"], serde_json::json!({ "supplementalGroups": [101, 4] }));

    let objects = helm(
        &program,
        &[
            // A map would be merged with the chart's own.
            "rbac.otherPolicies=null",
            "config={\"all-drops\":true}",
            "extraArgs=[\"--peers=watch\"]",
            "priorityClassName=\"system-node-critical\"",
            "image.tag=\"edge\"",
        ],
    )?;
    let pod = &objects["DaemonSet netpol-trace"]["spec"]["template"]["spec"];
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["containers"][0]["image"], "ghcr.io/netpol-trace/netpol-trace:edge");
    let arguments = pod["containers"][0]["args"].as_array().context("arguments")?;
    assert_eq!(arguments.last().and_then(|last| last.as_str()), Some("--peers=watch"));
    assert_eq!(objects["ClusterRole netpol-trace"]["rules"].as_array().map(Vec::len), Some(6));
    let file = objects["ConfigMap netpol-trace"]["data"]["config.yaml"].as_str().context("a file")?;
    assert!(file.contains("all-drops: true") && file.contains("hooks:"), "{file}");
    Ok(())
}
