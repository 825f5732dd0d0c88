//! Which drops on this node the agent can see, and which it cannot: for `doctor` and status records. Pure.

use std::collections::BTreeMap;

use super::ruleset::RuleEngine;
use super::{Inventory, Readable};

/// How many drops of a mechanism the agent sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Covered {
    Yes,
    /// Some of them, or without some of the evidence.
    Partly,
    No,
    /// Whether the node uses the mechanism is not known.
    Unknown,
}

/// One mechanism that the node uses or may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// What the inventory found.
    pub found: String,
    pub covered: Covered,
    /// The consequence for records.
    pub meaning: String,
    pub remedy: Option<&'static str>,
}

/// First release in which Open vSwitch gives its drops a reason.
const OVS_REASONS: (u32, u32) = (6, 6);
/// First release in which drops of tc and XDP have a reason of their own.
const TC_REASONS: (u32, u32) = (5, 18);
const GRANT: &str = "grant CAP_NET_ADMIN and CAP_NET_RAW, or run as root";

impl Coverage {
    fn new(found: impl Into<String>, covered: Covered, meaning: impl Into<String>) -> Coverage {
        Coverage { found: found.into(), covered, meaning: meaning.into(), remedy: None }
    }

    fn remedy(self, remedy: &'static str) -> Coverage {
        Coverage { remedy: Some(remedy), ..self }
    }
}

/// Returns one item per mechanism. `release` is the kernel's major and minor version.
pub fn coverage(inventory: &Inventory, release: (u32, u32)) -> Vec<Coverage> {
    let mut all = Vec::new();
    rulesets(inventory, &mut all);
    queues(inventory, &mut all);
    devices(inventory, release, &mut all);
    all
}

/// Returns the mechanisms whose drops the agent cannot see, for the status: a node that uses one must not look like a node without drops.
pub fn uncovered(inventory: &Inventory, release: (u32, u32)) -> Vec<String> {
    let mut all = Vec::new();
    devices(inventory, release, &mut all);
    all.retain(|item| item.covered == Covered::No);
    all.into_iter().map(|item| format!("{}: {}", item.found, item.meaning)).collect()
}

fn queues(inventory: &Inventory, all: &mut Vec<Coverage>) {
    if inventory.queues.is_empty() {
        return;
    }
    let numbers = some(inventory.queues.iter().map(|queue| queue.number.to_string()));
    let lost: u64 = inventory.queues.iter().map(|queue| queue.lost).sum();
    let found = format!("NFQUEUE with a listener: {numbers}");
    all.push(if lost == 0 {
        let meaning =
            "the drops that it decides are recorded, mechanism `nfqueue`; without a listener they are `enforcer_unavailable`";
        Coverage::new(found, Covered::Yes, meaning)
    } else {
        let meaning = "an overloaded enforcer lost these packets, no policy denied them; the drops that it decides are recorded";
        Coverage::new(format!("{found}; {lost} packets lost to full queues"), Covered::Partly, meaning)
            .remedy("look at the policy engine's CPU, or raise its queue length")
    });
}

fn rulesets(inventory: &Inventory, all: &mut Vec<Coverage>) {
    let ruleset = &inventory.ruleset;
    for (backend, known, name) in
        [(RuleEngine::Nft, &inventory.nft, "nftables"), (RuleEngine::Legacy, &inventory.legacy, "iptables-legacy")]
    {
        if let Readable::No(why) = known {
            all.push(
                Coverage::new(
                    format!("{name}: cannot be read ({why})"),
                    Covered::Unknown,
                    "its drops are recorded; whether a rule drops or rejects, and which product made the rule, stays unknown",
                )
                .remedy(GRANT),
            );
            continue;
        }
        let tables = ruleset.tables.iter().filter(|(key, _)| key.backend == backend);
        let names: Vec<String> =
            tables.map(|(key, rules)| format!("{} {} ({rules} rules)", key.family.name(), plain(&key.name))).collect();
        if names.is_empty() {
            continue;
        }
        let mut products: BTreeMap<&str, u64> = BTreeMap::new();
        for ((product, of), chains) in &ruleset.products {
            if *of == backend {
                *products.entry(product.name()).or_default() += chains;
            }
        }
        let chains = some(products.iter().map(|(product, chains)| format!("{product} ({chains})")));
        let whose = if products.is_empty() { String::new() } else { format!("; chains of {chains}") };
        let (covered, rest) = match ruleset.complete {
            true => (Covered::Yes, ""),
            false => (Covered::Partly, "; there were too many rules to keep, so `action` may stay unknown"),
        };
        all.push(Coverage::new(
            format!("{name}: {}{whose}", some(names.into_iter())),
            covered,
            format!("its drops are recorded, mechanism `{name}`{rest}"),
        ));
    }
    if ruleset.commented > 0 {
        all.push(Coverage::new(
            format!("{} rules name their policy in a comment", ruleset.commented),
            Covered::Yes,
            format!("such as: {}", some(ruleset.comments.iter().map(|comment| format!("{:?}", plain(comment))))),
        ));
    }
}

fn devices(inventory: &Inventory, release: (u32, u32), all: &mut Vec<Coverage>) {
    if let Readable::No(why) = &inventory.devices_known {
        all.push(
            Coverage::new(
                format!("tc, XDP, netkit, Open vSwitch: the interfaces cannot be read ({why})"),
                Covered::Unknown,
                "whether any of them drops packets here is not known",
            )
            .remedy(GRANT),
        );
    }
    let devices = &inventory.devices;
    let tc: Vec<_> = devices.iter().filter(|device| !device.programs.is_empty()).collect();
    if !tc.is_empty() {
        let names = tc.iter().map(|d| format!("{} ({})", plain(&d.name), some(d.programs.iter().map(|p| plain(p)))));
        let found = format!("tc programs on {}", some(names));
        all.push(if release >= TC_REASONS {
            Coverage::new(found, Covered::Yes, "their drops are recorded, mechanism `tc`")
        } else {
            Coverage::new(
                found,
                Covered::Partly,
                "before Linux 5.18 their drops are recognized by the kernel function only",
            )
        });
    }
    let named = |devices: &mut dyn Iterator<Item = &super::Device>| some(devices.map(|device| plain(&device.name)));
    if devices.iter().any(|device| device.xdp.is_some() && !device.blind()) {
        let seen = named(&mut devices.iter().filter(|device| device.xdp.is_some() && !device.blind()));
        all.push(Coverage::new(format!("XDP on {seen}"), Covered::Yes, "its drops are recorded, mechanism `xdp`"));
    }
    if devices.iter().any(super::Device::blind) {
        let blind = named(&mut devices.iter().filter(|device| device.blind()));
        all.push(
            Coverage::new(
                format!("XDP in the driver of {blind}"),
                Covered::No,
                "no coverage: the program drops packets before the kernel has them",
            )
            .remedy("look at the program's own counters"),
        );
    }
    let netkit = devices.iter().filter(|device| device.kind == "netkit").count();
    if netkit > 0 {
        all.push(
            Coverage::new(
                format!("netkit devices: {netkit}"),
                Covered::Partly,
                "drops of their programs have no reason of their own: they are recognized by the kernel function (which takes the \
                 kernel's symbols), mechanism `tc`. A pod's packets reach these programs before the tc hook, so that hook does not see \
                 packets that they drop or redirect",
            )
            .remedy("for the rest use the CNI's own notifications (Cilium: hubble observe --verdict DROPPED)"),
        );
    }
    let ovs = devices.iter().any(|device| device.kind == "openvswitch" || device.name == "ovs-system");
    if ovs && release >= OVS_REASONS {
        all.push(Coverage::new("Open vSwitch", Covered::Yes, "its drops are recorded, mechanism `ovs`"));
    } else if ovs {
        all.push(
            Coverage::new(
                "Open vSwitch",
                Covered::No,
                "no coverage before Linux 6.6: the kernel reports its drops like delivered packets",
            )
            .remedy("use Linux 6.6 or later where Open vSwitch enforces policies"),
        );
    }
}

/// Joins the first few items of a list and counts the others.
fn some(mut names: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<String> = names.by_ref().take(SHOWN).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Escapes control characters: names of tables and devices are untrusted input, and the text goes to a terminal.
fn plain(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::NfQueue;
    use crate::inventory::devices::{Device, Xdp};
    use crate::inventory::ruleset::{RuleEffect, RulesetBuilder, TableFamily, TableKey, Terminals};

    fn inventory() -> Inventory {
        let table = TableKey { backend: RuleEngine::Nft, family: TableFamily::Ip, name: "filter\u{1b}[2J".into() };
        let mut builder = RulesetBuilder::default();
        let comment = Some("policy a/b".to_owned());
        builder.rule(&table, "cali-x", RuleEffect { terminals: Terminals::DROP, comment, ..RuleEffect::default() });
        Inventory {
            netns: Some(1),
            nft: Readable::Yes,
            legacy: Readable::No("Operation not permitted".into()),
            ruleset: builder.finish(),
            queues: vec![NfQueue { number: 100, lost: 0 }],
            addresses: vec![],
            conntrack: false,
            devices_known: Readable::Yes,
            devices: vec![
                Device { name: "ovs-system".into(), kind: "openvswitch".into(), ..Device::default() },
                Device { name: "nk0".into(), kind: "netkit".into(), ..Device::default() },
                Device { name: "eth0".into(), xdp: Some(Xdp::Native), ..Device::default() },
            ],
        }
    }

    fn check(release: (u32, u32), expected: &[(&str, Covered)]) {
        let found = coverage(&inventory(), release);
        let have: Vec<(&str, Covered)> = found.iter().map(|c| (c.found.as_str(), c.covered)).collect();
        for ((have, covered), (text, wanted)) in have.iter().zip(expected) {
            assert!(have.contains(text) && covered == wanted, "{have} {covered:?}: {text} {wanted:?}");
        }
        assert_eq!(have.len(), expected.len(), "{have:#?}");
    }

    #[test]
    fn every_mechanism_is_reported() {
        let expected = |ovs| {
            [
                ("nftables: ip filter\\u{1b}[2J (1 rules); chains of Calico (1)", Covered::Yes),
                ("iptables-legacy: cannot be read", Covered::Unknown),
                ("1 rules name their policy in a comment", Covered::Yes),
                ("NFQUEUE with a listener: 100", Covered::Yes),
                ("XDP in the driver of eth0", Covered::No),
                ("netkit devices: 1", Covered::Partly),
                ("Open vSwitch", ovs),
            ]
        };
        check((6, 1), &expected(Covered::No));
        check((6, 12), &expected(Covered::Yes));
        let blind = |release| uncovered(&inventory(), release).join("\n");
        assert!(blind((6, 1)).contains("Open vSwitch: no coverage before Linux 6.6"), "{}", blind((6, 1)));
        assert!(blind((6, 12)).starts_with("XDP in the driver of eth0: no coverage"), "{}", blind((6, 12)));
    }
}
