//! Loads nftables rulesets and reads their counters.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::Netns;

/// Loads a ruleset with `nft -f`, which loads all of it or nothing.
pub fn load(netns: &Netns, ruleset: &str) -> Result<()> {
    netns.command("nft", &["-f", "-"], ruleset).map(drop)
}

/// Packets by named counter.
pub fn counters(netns: &Netns) -> Result<BTreeMap<String, u64>> {
    let mut packets = BTreeMap::new();
    for object in list(netns, "counters")? {
        if let (Some(name), Some(count)) = (object.pointer("/counter/name"), object.pointer("/counter/packets")) {
            packets.insert(name.as_str().unwrap_or_default().to_owned(), count.as_u64().unwrap_or_default());
        }
    }
    Ok(packets)
}

/// Packets by comment, for rules with an anonymous counter. Rules with the same comment are added up.
pub fn rule_counters(netns: &Netns) -> Result<BTreeMap<String, u64>> {
    let mut packets = BTreeMap::new();
    for object in list(netns, "ruleset")? {
        let Some(rule) = object.get("rule") else { continue };
        let comment = rule["comment"].as_str().unwrap_or_default();
        for expression in rule["expr"].as_array().into_iter().flatten() {
            if let Some(count) = expression.pointer("/counter/packets").and_then(Value::as_u64) {
                *packets.entry(comment.to_owned()).or_default() += count;
            }
        }
    }
    Ok(packets)
}

fn list(netns: &Netns, what: &str) -> Result<Vec<Value>> {
    let output = netns.command("nft", &["-j", "list", what], "")?;
    let mut listing: Value = serde_json::from_slice(&output.stdout).context("nft -j prints JSON")?;
    match listing["nftables"].take() {
        Value::Array(objects) => Ok(objects),
        other => anyhow::bail!("nft -j list {what}: expected an array under `nftables`, found {other}"),
    }
}
