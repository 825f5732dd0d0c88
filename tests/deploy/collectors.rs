//! The examples for collectors find the agents' logs and forward every kind of record.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::render::{deploy, documents};

fn example(name: &str) -> Result<Value> {
    let text = fs::read_to_string(deploy().join("collectors").join(name))?;
    documents(&text)?.into_iter().next().with_context(|| format!("{name} is empty"))
}

/// Without `status` records `verify-log` can't check a log.
#[test]
fn no_example_leaves_out_records() -> Result<()> {
    let fluent_bit = example("fluent-bit.yaml")?;
    for filter in fluent_bit.pointer("/pipeline/filters").and_then(Value::as_array).context("filters")? {
        assert_ne!(filter["name"], "grep", "{filter}");
    }
    let vector = example("vector.yaml")?;
    for (name, transform) in vector["transforms"].as_object().context("transforms")? {
        assert_eq!(transform["type"], "remap", "{name} may leave out records");
    }
    Ok(())
}

/// The kubelet names a log after pod, namespace and container.
#[test]
fn fluent_bit_finds_the_agents_logs() -> Result<()> {
    let daemonset = fs::read_to_string(deploy().join("kustomize/base/daemonset.yaml"))?;
    let daemonset = documents(&daemonset)?.into_iter().next().context("a DaemonSet")?;
    let container = daemonset.pointer("/spec/template/spec/containers/0/name").and_then(Value::as_str);
    let path = example("fluent-bit.yaml")?.pointer("/pipeline/inputs/0/path").cloned();
    let want = format!("/var/log/containers/*_netpol-trace_{}-*.log", container.context("a container")?);
    assert_eq!(path, Some(want.into()));
    Ok(())
}
