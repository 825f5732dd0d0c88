//! Findings about what enforces policies on this node, and how much of it the agent can see.

use super::facts::NodeFacts;
use super::{DoctorFinding, FindingStatus};
use crate::inventory::Inventory;
use crate::inventory::coverage::{Covered, coverage};
use crate::inventory::products;

/// One finding for each mechanism that is present or may be, and one when none is.
pub(super) fn diagnose(facts: &NodeFacts, inventory: &Inventory, version: Option<(u32, u32)>) -> Vec<DoctorFinding> {
    let check = "coverage";
    let mut findings = Vec::new();
    if facts.host_network == Some(false) {
        findings.push(DoctorFinding::warn(
            check,
            "this process is not in the host's network namespace",
            "drops of the whole node are recorded, but its rulesets and interfaces can't be read from here",
            "set hostNetwork: true, or run doctor on the host",
        ));
    }
    for item in coverage(inventory, version.unwrap_or_default()) {
        let status = if item.covered == Covered::Yes { FindingStatus::Ok } else { FindingStatus::Warn };
        let remedy = item.remedy.map(str::to_owned);
        findings.push(DoctorFinding { remedy, ..DoctorFinding::new(check, status, item.found, item.meaning) });
    }
    let cni = cni(facts, inventory);
    if findings.is_empty() && cni.is_none() {
        findings.push(DoctorFinding::warn(
            check,
            "this network namespace has nothing that drops packets",
            "either no CNI enforces NetworkPolicy on this node, or it does so elsewhere",
            "check that the CNI supports NetworkPolicy; in a container, set hostNetwork: true to see the host's",
        ));
    }
    findings.extend(cni);
    findings
}

fn cni(facts: &NodeFacts, inventory: &Inventory) -> Option<DoctorFinding> {
    let check = "cni";
    let devices = inventory.devices.iter().map(|device| device.name.as_str());
    let names = products::cnis(devices, facts.cni_configurations.iter().map(String::as_str));
    if names.is_empty() {
        return None;
    }
    let found = format!("{} (by interfaces and /etc/cni/net.d)", names.join(", "));
    Some(match names.as_slice() {
        ["Flannel"] => DoctorFinding::warn(
            check,
            found,
            "Flannel enforces no NetworkPolicy: unless another program does, no policy drops packets here",
            "add an enforcer, such as kube-network-policies",
        ),
        _ if names.contains(&"Cilium") => DoctorFinding::warn(
            check,
            found,
            "Cilium drops in its own eBPF programs; verdicts cover NetworkPolicy v1 only, not Cilium's policies",
            "for Cilium's own policies use hubble observe --verdict DROPPED",
        ),
        _ => DoctorFinding::ok(check, found, "its drops are recorded where `coverage` covers its backend"),
    })
}
