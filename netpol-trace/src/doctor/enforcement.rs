//! What enforces policies on this node, and what of it can be seen.

use super::Finding;
use super::facts::Enforcement;

/// An interface name's beginning and the CNI that makes it.
const INTERFACES: [(&str, &str); 11] = [
    ("cilium_", "Cilium"),
    ("lxc", "Cilium"),
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("weave", "Weave Net"),
    ("antrea-gw", "Antrea"),
    ("ovn-k8s-mp", "OVN-Kubernetes"),
    ("flannel", "Flannel"),
    ("kube-bridge", "kube-router"),
    ("azv", "Azure CNI"),
    ("eni", "AWS VPC CNI"),
];
/// Part of a file name in /etc/cni/net.d.
const CONFIGURATIONS: [(&str, &str); 9] = [
    ("cilium", "Cilium"),
    ("calico", "Calico"),
    ("canal", "Calico"),
    ("weave", "Weave Net"),
    ("antrea", "Antrea"),
    ("ovn-kubernetes", "OVN-Kubernetes"),
    ("flannel", "Flannel"),
    ("kuberouter", "kube-router"),
    ("aws", "AWS VPC CNI"),
];
/// Before it, an Open vSwitch drop can't be told from a delivered packet.
const OVS_REASONS: (u32, u32) = (6, 6);

/// One finding for each backend that is there, and one when none is.
pub(super) fn judge(facts: &Enforcement, version: Option<(u32, u32)>) -> Vec<Finding> {
    let check = "enforcement";
    let mut findings = Vec::new();
    let mut unknown = Vec::new();
    if facts.host_network == Some(false) {
        findings.push(Finding::warn(
            check,
            "this is not the host's network namespace",
            "drops of the whole node are seen from here, but its rulesets and interfaces are not",
            "set hostNetwork: true, or run doctor on the host",
        ));
    }
    match &facts.nft_tables {
        Some(tables) if tables.is_empty() => {}
        Some(tables) => {
            let names: Vec<String> = tables.iter().map(|(family, name)| format!("{family} {name}")).collect();
            findings.push(Finding::ok(
                check,
                format!("nftables: {}", some(&names)),
                "its drops are recorded, mechanism `nftables`; iptables-nft's tables are among them",
            ));
        }
        None => unknown.push("nftables"),
    }
    match &facts.legacy_tables {
        Some(tables) if tables.is_empty() => {}
        Some(tables) => findings.push(Finding::ok(
            check,
            format!("iptables-legacy: {}", some(tables)),
            "its drops are recorded, mechanism `iptables-legacy`, or `netfilter` where the kernel can't tell",
        )),
        None => unknown.push("iptables-legacy"),
    }
    match &facts.queues {
        Some(queues) if queues.is_empty() => {}
        Some(queues) => {
            let names: Vec<String> = queues.iter().map(|queue| queue.number.to_string()).collect();
            let found = format!("NFQUEUE: a program decides over queue {}", some(&names));
            let dropped: u64 = queues.iter().map(|queue| queue.dropped).sum();
            findings.push(if dropped == 0 {
                Finding::ok(check, found, "the drops it decides are recorded, mechanism `nfqueue`")
            } else {
                Finding::warn(
                    check,
                    format!("{found}; {dropped} packets lost to full queues"),
                    "such drops are an overloaded enforcer's, not a policy's",
                    "look at the policy engine's CPU, or raise its queue length",
                )
            });
        }
        None => unknown.push("NFQUEUE"),
    }
    match &facts.clsact {
        Some(devices) if devices.is_empty() => {}
        Some(devices) => findings.push(Finding::ok(
            check,
            format!("tc programs may sit on {}", some(devices)),
            "their drops carry the reason TC_INGRESS or TC_EGRESS (Linux 5.18 or later)",
        )),
        None => unknown.push("tc"),
    }
    findings.extend(open_vswitch(facts, version));
    findings.extend(cni(facts));
    if !unknown.is_empty() {
        findings.push(Finding::warn(
            check,
            format!("can't be told: {}", unknown.join(", ")),
            "whether they enforce something here is not known; drops are recorded all the same",
            "run as root, or grant CAP_NET_ADMIN",
        ));
    } else if findings.is_empty() {
        findings.push(Finding::warn(
            check,
            "nothing that drops packets is set up in this network namespace",
            "either no CNI enforces NetworkPolicy on this node, or it does so elsewhere",
            "check that the CNI supports NetworkPolicy; in a container, set hostNetwork: true to see the host's",
        ));
    }
    findings
}

fn open_vswitch(facts: &Enforcement, version: Option<(u32, u32)>) -> Option<Finding> {
    let check = "enforcement";
    facts.interfaces.iter().any(|name| name == "ovs-system").then_some(())?;
    Some(match version {
        Some(version) if version >= OVS_REASONS => {
            Finding::ok(check, "Open vSwitch", "its drops carry a reason of their own, mechanism `ovs`")
        }
        _ => Finding::warn(
            check,
            "Open vSwitch",
            "no coverage before Linux 6.6: the kernel does not tell its drops from delivered packets",
            "use Linux 6.6 or later where Open vSwitch enforces policies",
        ),
    })
}

fn cni(facts: &Enforcement) -> Option<Finding> {
    let check = "cni";
    let interfaces = facts
        .interfaces
        .iter()
        .flat_map(|name| INTERFACES.iter().filter(move |(prefix, _)| name.starts_with(prefix)).map(|(_, cni)| *cni));
    let files = facts.cni_configurations.iter().flat_map(|file| {
        CONFIGURATIONS.iter().filter(move |(part, _)| file.to_ascii_lowercase().contains(part)).map(|(_, cni)| *cni)
    });
    let mut names: Vec<&str> = interfaces.chain(files).collect();
    names.sort_unstable();
    names.dedup();
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
        _ => Finding::ok(check, found, "its drops are recorded where its backend is covered, see `enforcement`"),
    })
}

/// The first few of a list.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
