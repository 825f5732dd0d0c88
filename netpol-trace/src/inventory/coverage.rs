//! What of this node's enforcement can be seen, and what can't: for `doctor` and the log. Pure.

use std::collections::BTreeMap;

use super::ruleset::RuleEngine;
use super::{Inventory, Readable};

/// How much of it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Covered {
    Yes,
    /// Seen, with something missing.
    Partly,
    No,
    /// Whether it is there can't be told.
    Unknown,
}

/// One mechanism that is there, or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// What was found.
    pub found: String,
    pub covered: Covered,
    /// What follows for the records.
    pub meaning: String,
    pub remedy: Option<&'static str>,
}

/// Open vSwitch gives its drops a reason from this release on.
const OVS_REASONS: (u32, u32) = (6, 6);
/// tc and XDP drops have a reason of their own from this release on.
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

/// One line per mechanism. `release` is the kernel's major and minor.
pub fn coverage(inventory: &Inventory, release: (u32, u32)) -> Vec<Coverage> {
    let mut all = Vec::new();
    rulesets(inventory, &mut all);
    queues(inventory, &mut all);
    devices(inventory, release, &mut all);
    all
}

/// What can't be seen at all, for the status: a node that enforces so must not look like one without drops.
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
        let meaning = "such drops are an overloaded enforcer's, not a policy's; those that it decides are recorded";
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
                    format!("{name}: can't be read ({why})"),
                    Covered::Unknown,
                    "its drops are recorded; whether a rule drops or rejects, and whose it is, stays unknown",
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
            false => (Covered::Partly, "; not all rules could be kept, so `action` may stay unknown"),
        };
        all.push(Coverage::new(
            format!("{name}: {}{whose}", some(names.into_iter())),
            covered,
            format!("its drops are recorded, mechanism `{name}`{rest}"),
        ));
    }
    if ruleset.commented > 0 {
        all.push(Coverage::new(
            format!("{} rules say in a comment which policy they are of", ruleset.commented),
            Covered::Yes,
            format!("such as: {}", some(ruleset.comments.iter().map(|comment| format!("{:?}", plain(comment))))),
        ));
    }
}

fn devices(inventory: &Inventory, release: (u32, u32), all: &mut Vec<Coverage>) {
    if let Readable::No(why) = &inventory.devices_known {
        all.push(
            Coverage::new(
                format!("tc, XDP, netkit, Open vSwitch: can't be told ({why})"),
                Covered::Unknown,
                "whether they enforce something here is not known",
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
            Coverage::new(found, Covered::Partly, "before Linux 5.18 their drops are told by their place only")
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
                "no coverage: a packet that it drops never becomes one that the kernel could report",
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
                "what their programs drop has no reason of its own: it is told by its place (which takes the kernel's symbols), \
                 mechanism `tc`. A pod's packets meet them before the tc hook: no coverage there of those that they drop or redirect",
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
                "no coverage before Linux 6.6: the kernel does not tell its drops from delivered packets",
            )
            .remedy("use Linux 6.6 or later where Open vSwitch enforces policies"),
        );
    }
}

/// The first few of a list.
fn some(mut names: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<String> = names.by_ref().take(SHOWN).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Names of tables and devices come from whoever made them: no control character reaches a terminal.
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
    fn nothing_is_passed_over_in_silence() {
        let expected = |ovs| {
            [
                ("nftables: ip filter\\u{1b}[2J (1 rules); chains of Calico (1)", Covered::Yes),
                ("iptables-legacy: can't be read", Covered::Unknown),
                ("1 rules say in a comment", Covered::Yes),
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
