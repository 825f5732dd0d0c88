//! What enforces policies on this node, and what of it can be seen.

use super::facts::Facts;
use super::{Finding, Status};
use crate::inventory::Inventory;
use crate::inventory::coverage::{Covered, coverage};
use crate::inventory::products;

/// One finding for each mechanism that is there or may be, and one when none is.
pub(super) fn judge(facts: &Facts, inventory: &Inventory, version: Option<(u32, u32)>) -> Vec<Finding> {
    let check = "coverage";
    let mut findings = Vec::new();
    if facts.host_network == Some(false) {
        findings.push(Finding::warn(
            check,
            "this is not the host's network namespace",
            "drops of the whole node are seen from here, but its rulesets and interfaces are not",
            "set hostNetwork: true, or run doctor on the host",
        ));
    }
    for item in coverage(inventory, version.unwrap_or_default()) {
        let status = if item.covered == Covered::Yes { Status::Ok } else { Status::Warn };
        let remedy = item.remedy.map(str::to_owned);
        findings.push(Finding { remedy, ..Finding::new(check, status, item.found, item.meaning) });
    }
    let cni = cni(facts, inventory);
    if findings.is_empty() && cni.is_none() {
        findings.push(Finding::warn(
            check,
            "nothing that drops packets is set up in this network namespace",
            "either no CNI enforces NetworkPolicy on this node, or it does so elsewhere",
            "check that the CNI supports NetworkPolicy; in a container, set hostNetwork: true to see the host's",
        ));
    }
    findings.extend(cni);
    findings
}

fn cni(facts: &Facts, inventory: &Inventory) -> Option<Finding> {
    let check = "cni";
    let devices = inventory.devices.iter().map(|device| device.name.as_str());
    let names = products::cnis(devices, facts.cni_configurations.iter().map(String::as_str));
    if names.is_empty() {
        return None;
    }
    let found = format!("{} (by interfaces and /etc/cni/net.d)", names.join(", "));
    Some(match names.as_slice() {
        ["Flannel"] => Finding::warn(
            check,
            found,
            "Flannel enforces no NetworkPolicy: unless another program does, there are no such drops",
            "add an enforcer, such as kube-network-policies",
        ),
        _ if names.contains(&"Cilium") => Finding::warn(
            check,
            found,
            "Cilium drops in its own eBPF programs; verdicts speak of NetworkPolicy v1 only, not of Cilium's policies",
            "for Cilium's own policies use hubble observe --verdict DROPPED",
        ),
        _ => Finding::ok(check, found, "its drops are recorded where its backend is covered, see `coverage`"),
    })
}
