//! Machines where something keeps the process from loading programs or reading rulesets.

use expect_test::expect;

use super::{check, check_node, diagnose, good};
use crate::doctor::FindingStatus;
use crate::doctor::facts::{KallsymsState, LockdownMode};
use crate::inventory::Readable;
use crate::inventory::ruleset::RulesetBuilder;

#[test]
fn an_ordinary_user() {
    check_node(
        |facts, inventory| {
            facts.capabilities = Some(0);
            facts.hooks[0].result = Err("Operation not permitted (os error 1)".into());
            facts.symbols = KallsymsState::Hidden;
            facts.lockdown = LockdownMode::Unknown;
            let refused = Readable::No("Operation not permitted (os error 1)".into());
            (inventory.nft, inventory.legacy) = (refused.clone(), refused);
            inventory.ruleset = RulesetBuilder::default().finish();
        },
        expect![[r#"
            No: drops can't be recorded here: CAP_BPF and CAP_PERFMON missing.

            FAIL hook         kfree_skb does not load: Operation not permitted (os error 1)
                              the kernel does not let this process see drops
                              To do: see `capabilities`
            FAIL capabilities CAP_BPF and CAP_PERFMON missing
                              needed to load the programs
                              To do: run as root, or add CAP_BPF and CAP_PERFMON to the container's securityContext.capabilities

            warn capabilities CAP_SYSLOG missing
                              needed to read symbol addresses: without it a record has the drop's reason but not its call site
                              To do: run as root, or add CAP_SYSLOG to the container's securityContext.capabilities
            warn capabilities CAP_NET_ADMIN missing
                              needed to read the node's rulesets and attach to interfaces: without it only the drop itself shows the mechanism
                              To do: run as root, or add CAP_NET_ADMIN to the container's securityContext.capabilities
            warn capabilities CAP_NET_RAW missing
                              needed to read iptables-legacy tables
                              To do: run as root, or add CAP_NET_RAW to the container's securityContext.capabilities
            warn lockdown     not known: /sys/kernel/security is not mounted or not readable
                              if a hook does not load, lockdown may be why
                              To do: mount -t securityfs securityfs /sys/kernel/security, or run as root
            warn symbols      /proc/kallsyms shows every address as 0
                              records have the drop's reason but no `kernel.location`, and mechanism and cause are less certain
                              To do: grant CAP_SYSLOG, or run as root
            warn coverage     nftables: cannot be read (Operation not permitted (os error 1))
                              its drops are recorded; whether a rule drops or rejects, and which product made the rule, stays unknown
                              To do: grant CAP_NET_ADMIN and CAP_NET_RAW, or run as root
            warn coverage     iptables-legacy: cannot be read (Operation not permitted (os error 1))
                              its drops are recorded; whether a rule drops or rejects, and which product made the rule, stays unknown
                              To do: grant CAP_NET_ADMIN and CAP_NET_RAW, or run as root
        "#]],
    );
}

#[test]
fn only_the_daemonsets_capabilities() {
    check(
        |facts| {
            facts.capabilities = Some(1 << 39 | 1 << 38);
            facts.symbols = KallsymsState::Hidden;
        },
        expect![[r#"
            Yes: drops can be recorded here, with 4 limits.

            warn capabilities CAP_SYSLOG missing
                              needed to read symbol addresses: without it a record has the drop's reason but not its call site
                              To do: run as root, or add CAP_SYSLOG to the container's securityContext.capabilities
            warn capabilities CAP_NET_ADMIN missing
                              needed to read the node's rulesets and attach to interfaces: without it only the drop itself shows the mechanism
                              To do: run as root, or add CAP_NET_ADMIN to the container's securityContext.capabilities
            warn capabilities CAP_NET_RAW missing
                              needed to read iptables-legacy tables
                              To do: run as root, or add CAP_NET_RAW to the container's securityContext.capabilities
            warn symbols      /proc/kallsyms shows every address as 0
                              records have the drop's reason but no `kernel.location`, and mechanism and cause are less certain
                              To do: grant CAP_SYSLOG, or run as root
        "#]],
    );
}

#[test]
fn confidentiality() {
    check(
        |facts| {
            facts.lockdown = LockdownMode::Confidentiality;
            facts.hooks[0].result = Err("Operation not permitted (os error 1)".into());
        },
        expect![[r#"
            No: drops can't be recorded here: the kernel is locked down in confidentiality mode.

            FAIL hook         kfree_skb does not load: Operation not permitted (os error 1)
                              the kernel does not let this process see drops
                              To do: see `lockdown`
            FAIL lockdown     the kernel is locked down in confidentiality mode
                              the kernel refuses programs that copy its memory, as reading packet headers does
                              To do: boot with lockdown=integrity or none, or without the setting that enforces confidentiality
        "#]],
    );
}

#[test]
fn a_user_namespace() {
    check(
        |facts| {
            facts.initial_user_namespace = Some(false);
            facts.hooks[0].result = Err("Operation not permitted (os error 1)".into());
        },
        expect![[r#"
            No: drops can't be recorded here: this process runs in a user namespace of its own.

            FAIL hook         kfree_skb does not load: Operation not permitted (os error 1)
                              the kernel does not let this process see drops
                              To do: see `capabilities`
            FAIL capabilities this process runs in a user namespace of its own
                              its capabilities count only in that namespace: the kernel does not let it see drops
                              To do: run in the host's user namespace (a pod with hostUsers left at true)
        "#]],
    );
}

/// A profile older than CAP_BPF: the kernel would allow bpf(2), the filter does not.
#[test]
fn a_seccomp_profile_that_refuses_bpf() {
    let refused = "the kernel refused the program: Operation not permitted (os error 1)";
    check(
        |facts| {
            facts.seccomp = Some(2);
            facts.hooks[0].result = Err(refused.into());
        },
        expect![[r#"
            No: drops can't be recorded here: a seccomp profile is in force, and bpf(2) is refused although the capabilities are there.

            FAIL hook         kfree_skb does not load: the kernel refused the program: Operation not permitted (os error 1)
                              the kernel does not let this process see drops
                              To do: see `seccomp`
            FAIL seccomp      a seccomp profile is in force, and bpf(2) is refused although the capabilities are there
                              the container runtime's profile allows bpf(2) with CAP_SYS_ADMIN only, as profiles older than CAP_BPF do
                              To do: use containerd 1.6.9, Docker 23 or later, or set seccompProfile to a profile of type Localhost that allows bpf
        "#]],
    );
    let seccomp_fails = |seccomp, capabilities| {
        let mut facts = good();
        (facts.seccomp, facts.capabilities) = (seccomp, capabilities);
        facts.hooks[0].result = Err(refused.into());
        diagnose(&facts).iter().any(|finding| finding.check == "seccomp" && finding.status == FindingStatus::Fail)
    };
    assert!(seccomp_fails(Some(2), Some(0x1ff_ffff_ffff)));
    assert!(!seccomp_fails(Some(0), Some(0x1ff_ffff_ffff)), "no profile");
    assert!(!seccomp_fails(Some(2), Some(0)), "the capabilities are missing: that is why");
}
