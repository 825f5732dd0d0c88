//! Golden findings for machines that differ in one thing from a good one.

mod permissions;

use expect_test::{Expect, expect};

use super::facts::{BtfState, HookCheck, KallsymsState, LockdownMode, NodeFacts};
use super::{DoctorFinding, can_record, text};
use crate::inventory::devices::Device;
use crate::inventory::ruleset::{RuleEngine, RulesetBuilder, TableFamily, TableKey};
use crate::inventory::{Inventory, NfQueue, Readable};

/// A node with Linux 6.8, a root process and an nftables CNI.
fn good() -> NodeFacts {
    NodeFacts {
        release: Some("6.8.0-31-generic".into()),
        btf: BtfState::Present(5 << 20),
        hooks: vec![HookCheck { name: "kfree_skb".into(), result: Ok("as BTF tracepoint".into()), costs: None }],
        capabilities: Some(0x1ff_ffff_ffff),
        initial_user_namespace: Some(true),
        seccomp: Some(0),
        lockdown: LockdownMode::None,
        symbols: KallsymsState::Addresses,
        kptr_restrict: Some(1),
        memlock: Some(8 << 20),
        memory_max: Some(256 << 20),
        bpf_stats_enabled: Some(0),
        bpf_jit_enable: Some(1),
        unprivileged_bpf_disabled: Some(2),
        host_network: Some(true),
        cni_configurations: vec![],
    }
}

/// With these nftables tables.
fn inventory(tables: &[&str]) -> Inventory {
    let mut builder = RulesetBuilder::default();
    for name in tables {
        builder.table(&TableKey { backend: RuleEngine::Nft, family: TableFamily::Inet, name: (*name).into() });
    }
    let device = |name: &str| Device { name: name.into(), ..Device::default() };
    Inventory {
        netns: Some(1),
        nft: Readable::Yes,
        legacy: Readable::Absent,
        ruleset: builder.finish(),
        queues: vec![],
        addresses: vec![],
        conntrack: false,
        devices_known: Readable::Yes,
        devices: vec![device("eth0"), device("lo")],
    }
}

/// A node's ruleset that enforces.
const TABLES: &[&str] = &["kube-network-policies"];

fn diagnose(facts: &NodeFacts) -> Vec<DoctorFinding> {
    super::diagnose(facts, &inventory(TABLES))
}

/// The first line and what is not fine.
fn check(change: impl FnOnce(&mut NodeFacts), expected: Expect) {
    check_node(|facts, _| change(facts), expected);
}

fn check_node(change: impl FnOnce(&mut NodeFacts, &mut Inventory), expected: Expect) {
    let (mut facts, mut inventory) = (good(), inventory(TABLES));
    change(&mut facts, &mut inventory);
    let printed = text(&super::diagnose(&facts, &inventory));
    let until = printed.find("\nok ").map_or(printed.as_str(), |end| &printed[..end]);
    expected.assert_eq(until);
}

#[test]
fn a_good_node_in_full() {
    let findings = diagnose(&good());
    assert!(can_record(&findings));
    expect![[r#"
        Yes: drops can be recorded here.

        ok   kernel       Linux 6.8.0-31-generic
                          drops have a reason
        ok   btf          /sys/kernel/btf/vmlinux, 5 MiB
                          the layout of the kernel's structures is known
        ok   hook         kfree_skb loads and attaches, as BTF tracepoint
                          the kernel lets this process see drops
        ok   capabilities CAP_BPF and CAP_PERFMON for the programs, CAP_SYSLOG for symbols, CAP_NET_ADMIN and CAP_NET_RAW for rulesets
                          all capabilities that the agent needs are effective
        ok   lockdown     none
                          no restriction
        ok   symbols      /proc/kallsyms shows addresses
                          records name the call site of a drop (`kernel.location`)
        ok   memory       cgroup limit 256 MiB
                          enough to start with
        ok   sysctl       kernel.unprivileged_bpf_disabled=2
                          without effect: it restricts only processes without CAP_BPF
        ok   coverage     nftables: inet kube-network-policies (0 rules)
                          its drops are recorded, mechanism `nftables`
    "#]]
    .assert_eq(&text(&findings));
}

#[test]
fn no_btf() {
    check(
        |facts| {
            facts.btf = BtfState::Absent;
            facts.hooks[0].result = Err("this kernel has no BTF".into());
        },
        expect![[r#"
            No: drops can't be recorded here: no /sys/kernel/btf/vmlinux.

            FAIL btf          no /sys/kernel/btf/vmlinux
                              the layout of the kernel's structures can't be found, so packets can't be read
                              To do: use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the distributions' are; in a container, mount /sys
            FAIL hook         kfree_skb does not load: this kernel has no BTF
                              the kernel does not let this process see drops
                              To do: see `btf`
        "#]],
    );
}

#[test]
fn an_old_kernel() {
    check(
        |facts| {
            facts.release = Some("4.19.0-26-amd64".into());
            facts.memlock = Some(u64::MAX);
        },
        expect![[r#"
            No: drops can't be recorded here: Linux 4.19.0-26-amd64, older than 5.10.

            FAIL kernel       Linux 4.19.0-26-amd64, older than 5.10
                              its BPF programs can't read kernel memory in the way that netpol-trace needs
                              To do: use Linux 5.10 or later, built with CONFIG_DEBUG_INFO_BTF=y
        "#]],
    );
}

#[test]
fn linux_5_10_without_addresses() {
    check(
        |facts| {
            facts.release = Some("5.10.0-36-cloud-amd64".into());
            facts.symbols = KallsymsState::Hidden;
            facts.kptr_restrict = Some(2);
            facts.capabilities = Some(0x1ff_ffff_ffff & !(1 << 24));
            facts.memlock = Some(64 << 10);
        },
        expect![[r#"
            No: drops can't be recorded here: /proc/kallsyms shows every address as 0; locked memory: 64 KiB.

            FAIL symbols      /proc/kallsyms shows every address as 0
                              this kernel's drops have no reason, and without addresses no call site: nothing identifies a policy's drop
                              To do: sysctl kernel.kptr_restrict=1, and grant CAP_SYSLOG
            FAIL memory       locked memory: 64 KiB
                              before Linux 5.11 maps count against this limit, and it is too small for them
                              To do: grant CAP_SYS_RESOURCE, or ulimit -l unlimited

            warn kernel       Linux 5.10.0-36-cloud-amd64
                              before 5.18 drops have no reason: the agent identifies them by call site, which needs symbol addresses
                              To do: no action is needed; Linux 5.18 or later adds the reason
        "#]],
    );
}

#[test]
fn little_memory_and_costly_settings() {
    check(
        |facts| {
            facts.memory_max = Some(32 << 20);
            facts.bpf_stats_enabled = Some(1);
            facts.bpf_jit_enable = Some(0);
        },
        expect![[r#"
            Yes: drops can be recorded here, with 3 limits.

            warn memory       cgroup limit 32 MiB
                              maps, kernel symbols and a large cluster's objects may not fit: the agent could be killed
                              To do: raise resources.limits.memory to 128 MiB or more
            warn sysctl       kernel.bpf_stats_enabled=1
                              the kernel times every BPF program: about 60 ns more for each drop
                              To do: sysctl kernel.bpf_stats_enabled=0 when you are not measuring
            warn sysctl       net.core.bpf_jit_enable=0
                              BPF programs are interpreted: each drop costs several times as much
                              To do: sysctl net.core.bpf_jit_enable=1
        "#]],
    );
}

#[test]
fn open_vswitch_before_its_reasons() {
    check_node(
        |facts, inventory| {
            facts.release = Some("6.1.0-56-cloud-amd64".into());
            inventory.devices.push(Device { name: "ovs-system".into(), ..Device::default() });
        },
        expect![[r#"
            Yes: drops can be recorded here, with one limit.

            warn coverage     Open vSwitch
                              no coverage before Linux 6.6: the kernel reports its drops like delivered packets
                              To do: use Linux 6.6 or later where Open vSwitch enforces policies
        "#]],
    );
}

#[test]
fn cilium_and_a_full_queue() {
    check_node(
        |_, inventory| {
            let names = ["cilium_host", "lxc12ab"].map(|name| Device { name: name.into(), ..Device::default() });
            inventory.devices.extend(names);
            inventory.queues = vec![NfQueue { number: 100, lost: 7 }];
        },
        expect![[r#"
            Yes: drops can be recorded here, with 2 limits.

            warn coverage     NFQUEUE with a listener: 100; 7 packets lost to full queues
                              an overloaded enforcer lost these packets, no policy denied them; the drops that it decides are recorded
                              To do: look at the policy engine's CPU, or raise its queue length
            warn cni          Cilium (by interfaces and /etc/cni/net.d)
                              Cilium drops in its own eBPF programs; verdicts cover NetworkPolicy v1 only, not Cilium's policies
                              To do: for Cilium's own policies use hubble observe --verdict DROPPED
        "#]],
    );
}

#[test]
fn nothing_enforces() {
    check_node(
        |facts, inventory| {
            inventory.ruleset = RulesetBuilder::default().finish();
            facts.cni_configurations = vec!["10-flannel.conflist".into()];
        },
        expect![[r#"
            Yes: drops can be recorded here, with one limit.

            warn cni          Flannel (by interfaces and /etc/cni/net.d)
                              Flannel enforces no NetworkPolicy: unless another program does, no policy drops packets here
                              To do: add an enforcer, such as kube-network-policies
        "#]],
    );
}

#[test]
fn a_pods_own_network() {
    check_node(
        |facts, inventory| {
            facts.host_network = Some(false);
            inventory.ruleset = RulesetBuilder::default().finish();
        },
        expect![[r#"
            Yes: drops can be recorded here, with one limit.

            warn coverage     this process is not in the host's network namespace
                              drops of the whole node are recorded, but its rulesets and interfaces can't be read from here
                              To do: set hostNetwork: true, or run doctor on the host
        "#]],
    );
}

#[test]
fn a_table_name_cannot_steer_the_terminal() {
    let printed = text(&super::diagnose(&good(), &inventory(&["x\u{1b}[2Jy\u{202e}\nok"])));
    let line = printed.lines().find(|line| line.contains("nftables:")).unwrap_or_default();
    expect![[r#"ok   coverage     nftables: inet x\u{1b}[2Jy\u{202e}\nok (0 rules)"#]].assert_eq(line);
}

#[test]
fn a_hook_that_drops_do_not_need() {
    check(
        |facts| {
            let costs = Some("only the rules show a REJECT".into());
            facts.hooks.push(HookCheck { name: "reject".into(), result: Err("EPERM".into()), costs });
        },
        expect![[r#"
            Yes: drops can be recorded here, with one limit.

            warn hook         reject: EPERM
                              only the rules show a REJECT
                              To do: drops are recorded without this hook; to get it, see `capabilities` and `lockdown`
        "#]],
    );
}

#[test]
fn json_has_the_promised_fields() {
    let mut facts = good();
    facts.btf = BtfState::Unreadable("Permission denied".into());
    let json = serde_json::to_value(diagnose(&facts)).unwrap();
    expect![[r#"{"check":"btf","found":"/sys/kernel/btf/vmlinux can't be read: Permission denied","meaning":"the layout of the kernel's structures can't be found, so packets can't be read","remedy":"make it readable","status":"fail"}"#]]
        .assert_eq(&json[1].to_string());
}

#[test]
fn nothing_is_known() {
    check_node(
        |facts, inventory| {
            *facts = NodeFacts::default();
            let why = || Readable::No("Operation not permitted (os error 1)".into());
            (inventory.nft, inventory.legacy, inventory.devices_known) = (why(), why(), why());
            inventory.ruleset = RulesetBuilder::default().finish();
        },
        expect![[r#"
            No: drops can't be recorded here: no /sys/kernel/btf/vmlinux.

            FAIL btf          no /sys/kernel/btf/vmlinux
                              the layout of the kernel's structures can't be found, so packets can't be read
                              To do: use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the distributions' are; in a container, mount /sys

            warn kernel       the kernel's release can't be read
                              what this kernel can do is not known
                              To do: mount /proc
            warn hook         no hook was tried
                              whether the kernel lets this process see drops is not known
                              To do: run doctor with the agent's user and capabilities
            warn capabilities the effective capabilities can't be read
                              which features this process may use is not known
                              To do: mount /proc
            warn lockdown     not known: /sys/kernel/security is not mounted or not readable
                              if a hook does not load, lockdown may be why
                              To do: mount -t securityfs securityfs /sys/kernel/security, or run as root
            warn symbols      /proc/kallsyms can't be read
                              records have the drop's reason but no `kernel.location`, and mechanism and cause are less certain
                              To do: grant CAP_SYSLOG, or run as root
            warn coverage     nftables: cannot be read (Operation not permitted (os error 1))
                              its drops are recorded; whether a rule drops or rejects, and which product made the rule, stays unknown
                              To do: grant CAP_NET_ADMIN and CAP_NET_RAW, or run as root
            warn coverage     iptables-legacy: cannot be read (Operation not permitted (os error 1))
                              its drops are recorded; whether a rule drops or rejects, and which product made the rule, stays unknown
                              To do: grant CAP_NET_ADMIN and CAP_NET_RAW, or run as root
            warn coverage     tc, XDP, netkit, Open vSwitch: the interfaces cannot be read (Operation not permitted (os error 1))
                              whether any of them drops packets here is not known
                              To do: grant CAP_NET_ADMIN and CAP_NET_RAW, or run as root
        "#]],
    );
}
