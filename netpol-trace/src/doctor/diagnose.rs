//! Turns the node's facts into findings. Pure: the same facts always give the same findings.

use super::facts::{BtfState, KallsymsState, LockdownMode, NodeFacts};
use super::{DoctorFinding, HOOK, enforcement};
use crate::inventory::Inventory;

/// The oldest kernel with every feature that the programs need.
const OLDEST: (u32, u32) = (5, 10);
/// From this release on a drop has a reason.
const REASONS: (u32, u32) = (5, 18);
/// From this release on BPF memory counts against the cgroup, not the locked-memory limit.
const CGROUP_ACCOUNTING: (u32, u32) = (5, 11);
/// From this release on CAP_BPF and CAP_PERFMON exist.
const CAP_BPF_KERNEL: (u32, u32) = (5, 8);
/// What the agent needs without the cluster's objects: rings, maps, kernel symbols.
const MEMORY_FLOOR: u64 = 64 << 20;

const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const SYSLOG: u32 = 34;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// All findings, the kernel's first. `inventory` is of the same network namespace.
pub fn diagnose(facts: &NodeFacts, inventory: &Inventory) -> Vec<DoctorFinding> {
    let mut findings = vec![kernel(facts), btf(facts)];
    findings.extend(hooks(facts));
    findings.extend(capabilities(facts));
    findings.extend(seccomp(facts));
    findings.push(lockdown(facts));
    findings.push(symbols(facts));
    findings.extend(memory(facts));
    findings.extend(sysctls(facts));
    findings.extend(enforcement::diagnose(facts, inventory, version(facts)));
    findings
}

/// `6.1.0-56-cloud-amd64` is (6, 1).
fn version(facts: &NodeFacts) -> Option<(u32, u32)> {
    let mut numbers = facts.release.as_deref()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn older(facts: &NodeFacts, than: (u32, u32)) -> bool {
    version(facts).is_some_and(|version| version < than)
}

fn kernel(facts: &NodeFacts) -> DoctorFinding {
    let check = "kernel";
    let Some(release) = facts.release.clone() else {
        return DoctorFinding::warn(
            check,
            "the kernel's release can't be read",
            "what this kernel can do is not known",
            "mount /proc",
        );
    };
    let release = format!("Linux {release}");
    if older(facts, OLDEST) {
        let release = format!("{release}, older than 5.10");
        let meaning = "its BPF programs can't read kernel memory in the way that netpol-trace needs";
        return DoctorFinding::fail(
            check,
            release,
            meaning,
            "use Linux 5.10 or later, built with CONFIG_DEBUG_INFO_BTF=y",
        );
    }
    if older(facts, REASONS) {
        let meaning =
            "before 5.18 drops have no reason: the agent identifies them by call site, which needs symbol addresses";
        return DoctorFinding::warn(
            check,
            release,
            meaning,
            "no action is needed; Linux 5.18 or later adds the reason",
        );
    }
    DoctorFinding::ok(check, release, "drops have a reason")
}

fn btf(facts: &NodeFacts) -> DoctorFinding {
    let check = "btf";
    let need = "the layout of the kernel's structures can't be found, so packets can't be read";
    match &facts.btf {
        BtfState::Present(bytes) => DoctorFinding::ok(
            check,
            format!("/sys/kernel/btf/vmlinux, {}", size(*bytes)),
            "the layout of the kernel's structures is known",
        ),
        BtfState::Absent => DoctorFinding::fail(
            check,
            "no /sys/kernel/btf/vmlinux",
            need,
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the distributions' are; in a container, mount /sys",
        ),
        BtfState::Unreadable(why) => DoctorFinding::fail(
            check,
            format!("/sys/kernel/btf/vmlinux can't be read: {why}"),
            need,
            "make it readable",
        ),
    }
}

fn hooks(facts: &NodeFacts) -> Vec<DoctorFinding> {
    let check = HOOK;
    let finding = |hook: &super::facts::HookCheck| match (&hook.result, &hook.costs) {
        (Ok(how), None) => DoctorFinding::ok(
            check,
            format!("{} loads and attaches, {how}", hook.name),
            "the kernel lets this process see drops",
        ),
        (Ok(how), Some(_)) => DoctorFinding::ok(
            check,
            format!("{}: {how}", hook.name),
            "loads and attaches; drops are recorded without it too",
        ),
        (Err(why), Some(costs)) => {
            let remedy = "drops are recorded without this hook; to get it, see `capabilities` and `lockdown`";
            DoctorFinding::warn(check, format!("{}: {why}", hook.name), costs, remedy)
        }
        (Err(why), None) => DoctorFinding::fail(
            check,
            format!("{} does not load: {why}", hook.name),
            "the kernel does not let this process see drops",
            hook_remedy(facts),
        ),
    };
    if facts.hooks.is_empty() {
        let meaning = "whether the kernel lets this process see drops is not known";
        return vec![DoctorFinding::warn(
            check,
            "no hook was tried",
            meaning,
            "run doctor with the agent's user and capabilities",
        )];
    }
    facts.hooks.iter().map(finding).collect()
}

/// Points to the most likely reason.
fn hook_remedy(facts: &NodeFacts) -> &'static str {
    if missing(facts, &[BPF, PERFMON]).is_some() || facts.initial_user_namespace == Some(false) {
        "see `capabilities`"
    } else if facts.lockdown == LockdownMode::Confidentiality {
        "see `lockdown`"
    } else if bpf_is_filtered(facts) {
        "see `seccomp`"
    } else if matches!(facts.btf, BtfState::Present(_)) {
        "check whether a security module (SELinux, AppArmor) forbids bpf(2); otherwise report this message as a bug"
    } else {
        "see `btf`"
    }
}

/// Whether a system call filter refuses bpf(2): not permitted, although no capability is missing.
fn bpf_is_filtered(facts: &NodeFacts) -> bool {
    let refused = |hook: &super::facts::HookCheck| {
        let why = hook.result.as_ref().err();
        why.is_some_and(|why| why.contains("Operation not permitted") || why.contains("os error 1)"))
    };
    facts.seccomp == Some(2)
        && missing(facts, &[BPF, PERFMON]).is_none()
        && facts.initial_user_namespace != Some(false)
        && facts.hooks.iter().any(refused)
}

fn seccomp(facts: &NodeFacts) -> Option<DoctorFinding> {
    let check = "seccomp";
    if bpf_is_filtered(facts) {
        return Some(DoctorFinding::fail(
            check,
            "a seccomp profile is in force, and bpf(2) is refused although the capabilities are there",
            "the container runtime's profile allows bpf(2) with CAP_SYS_ADMIN only, as profiles older than CAP_BPF do",
            "use containerd 1.6.9, Docker 23 or later, or set seccompProfile to a profile of type Localhost that allows bpf",
        ));
    }
    (facts.seccomp == Some(2)).then(|| DoctorFinding::ok(check, "a seccomp profile is in force", "it allows bpf(2)"))
}

/// The names of those of `wanted` that are missing. `None` when none is missing, or the set is not known.
fn missing(facts: &NodeFacts, wanted: &[u32]) -> Option<String> {
    let set = facts.capabilities?;
    let has = |capability: u32| set & (1 << capability) != 0;
    let covered = |capability: u32| {
        // The kernel accepts CAP_SYS_ADMIN in place of the two that were split off from it.
        has(capability) || (has(SYS_ADMIN) && matches!(capability, BPF | PERFMON))
    };
    let missing: Vec<&str> = wanted.iter().filter(|c| !covered(**c)).map(|c| capability_name(*c)).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

fn capability_name(capability: u32) -> &'static str {
    match capability {
        NET_ADMIN => "CAP_NET_ADMIN",
        NET_RAW => "CAP_NET_RAW",
        SYS_ADMIN => "CAP_SYS_ADMIN",
        SYS_RESOURCE => "CAP_SYS_RESOURCE",
        SYSLOG => "CAP_SYSLOG",
        PERFMON => "CAP_PERFMON",
        _ => "CAP_BPF",
    }
}

fn capabilities(facts: &NodeFacts) -> Vec<DoctorFinding> {
    let check = "capabilities";
    if facts.capabilities.is_none() {
        let meaning = "which features this process may use is not known";
        return vec![DoctorFinding::warn(check, "the effective capabilities can't be read", meaning, "mount /proc")];
    }
    if facts.initial_user_namespace == Some(false) {
        return vec![DoctorFinding::fail(
            check,
            "this process runs in a user namespace of its own",
            "its capabilities count only in that namespace: the kernel does not let it see drops",
            "run in the host's user namespace (a pod with hostUsers left at true)",
        )];
    }
    let mut needs: Vec<(&[u32], &str, bool)> = vec![];
    if older(facts, CAP_BPF_KERNEL) {
        needs.push((&[SYS_ADMIN], "load the programs", true));
    } else {
        needs.push((&[BPF, PERFMON], "load the programs", true));
    }
    let symbols_needed = facts.symbols != KallsymsState::Addresses;
    if symbols_needed {
        needs.push((
            &[SYSLOG],
            "read symbol addresses: without it a record has the drop's reason but not its call site",
            false,
        ));
    }
    needs.push((
        &[NET_ADMIN],
        "read the node's rulesets and attach to interfaces: without it only the drop itself shows the mechanism",
        false,
    ));
    needs.push((&[NET_RAW], "read iptables-legacy tables", false));
    let mut findings: Vec<DoctorFinding> = Vec::new();
    for (wanted, purpose, required) in needs {
        let Some(names) = missing(facts, wanted) else { continue };
        let (found, meaning) = (format!("{names} missing"), format!("needed to {purpose}"));
        let remedy = format!("run as root, or add {names} to the container's securityContext.capabilities");
        findings.push(match required {
            true => DoctorFinding::fail(check, found, meaning, remedy),
            false => DoctorFinding::warn(check, found, meaning, remedy),
        });
    }
    if findings.is_empty() {
        let names = if older(facts, CAP_BPF_KERNEL) { "CAP_SYS_ADMIN" } else { "CAP_BPF and CAP_PERFMON" };
        let found =
            format!("{names} for the programs, CAP_SYSLOG for symbols, CAP_NET_ADMIN and CAP_NET_RAW for rulesets");
        findings.push(DoctorFinding::ok(check, found, "all capabilities that the agent needs are effective"));
    }
    findings
}

fn lockdown(facts: &NodeFacts) -> DoctorFinding {
    let check = "lockdown";
    let hooks_load =
        !facts.hooks.is_empty() && facts.hooks.iter().all(|hook| hook.result.is_ok() || hook.costs.is_some());
    match facts.lockdown {
        LockdownMode::Absent | LockdownMode::None => DoctorFinding::ok(check, "none", "no restriction"),
        LockdownMode::Integrity => DoctorFinding::ok(
            check,
            "integrity mode",
            "drops can be recorded; the kernel may refuse fentry, without which REJECT and DROP look alike",
        ),
        LockdownMode::Confidentiality => {
            let remedy = "boot with lockdown=integrity or none, or without the setting that enforces confidentiality";
            let meaning = "the kernel refuses programs that copy its memory, as reading packet headers does";
            match hooks_load {
                true => DoctorFinding::warn(check, "confidentiality mode", meaning, remedy),
                false => {
                    DoctorFinding::fail(check, "the kernel is locked down in confidentiality mode", meaning, remedy)
                }
            }
        }
        LockdownMode::Unknown if hooks_load => {
            DoctorFinding::ok(check, "not known: securityfs is not mounted", "without effect: the hooks load")
        }
        LockdownMode::Unknown => DoctorFinding::warn(
            check,
            "not known: /sys/kernel/security is not mounted or not readable",
            "if a hook does not load, lockdown may be why",
            "mount -t securityfs securityfs /sys/kernel/security, or run as root",
        ),
    }
}

fn symbols(facts: &NodeFacts) -> DoctorFinding {
    let check = "symbols";
    let found = match facts.symbols {
        KallsymsState::Addresses => {
            return DoctorFinding::ok(
                check,
                "/proc/kallsyms shows addresses",
                "records name the call site of a drop (`kernel.location`)",
            );
        }
        KallsymsState::Hidden => "/proc/kallsyms shows every address as 0",
        KallsymsState::Unreadable => "/proc/kallsyms can't be read",
    };
    let remedy = match facts.kptr_restrict {
        Some(2..) => "sysctl kernel.kptr_restrict=1, and grant CAP_SYSLOG",
        _ => "grant CAP_SYSLOG, or run as root",
    };
    if older(facts, REASONS) {
        let meaning = "this kernel's drops have no reason, and without addresses no call site: nothing identifies a policy's drop";
        return DoctorFinding::fail(check, found, meaning, remedy);
    }
    let meaning = "records have the drop's reason but no `kernel.location`, and mechanism and cause are less certain";
    DoctorFinding::warn(check, found, meaning, remedy)
}

fn memory(facts: &NodeFacts) -> Vec<DoctorFinding> {
    let check = "memory";
    let mut findings = Vec::new();
    if older(facts, CGROUP_ACCOUNTING) {
        let capable = missing(facts, &[SYS_RESOURCE]).is_none() && facts.capabilities.is_some();
        findings.push(match facts.memlock {
            Some(u64::MAX) => DoctorFinding::ok(check, "locked memory: unlimited", "the maps fit"),
            limit if capable => DoctorFinding::ok(
                check,
                limit.map_or("locked memory: limit unknown".into(), |n| format!("locked memory: {}", size(n))),
                "CAP_SYS_RESOURCE lets the agent raise it",
            ),
            Some(limit) if limit < MEMORY_FLOOR => DoctorFinding::fail(
                check,
                format!("locked memory: {}", size(limit)),
                "before Linux 5.11 maps count against this limit, and it is too small for them",
                "grant CAP_SYS_RESOURCE, or ulimit -l unlimited",
            ),
            Some(limit) => DoctorFinding::ok(check, format!("locked memory: {}", size(limit)), "the maps fit"),
            None => DoctorFinding::warn(
                check,
                "locked memory: limit unknown",
                "before Linux 5.11 maps count against it",
                "grant CAP_SYS_RESOURCE",
            ),
        });
    }
    findings.push(match facts.memory_max {
        Some(u64::MAX) => DoctorFinding::ok(check, "cgroup: no limit", "bounded by the agent's own limits"),
        Some(limit) if limit < MEMORY_FLOOR => DoctorFinding::warn(
            check,
            format!("cgroup limit {}", size(limit)),
            "maps, kernel symbols and a large cluster's objects may not fit: the agent could be killed",
            format!("raise resources.limits.memory to {} or more", size(2 * MEMORY_FLOOR)),
        ),
        Some(limit) => DoctorFinding::ok(check, format!("cgroup limit {}", size(limit)), "enough to start with"),
        None => DoctorFinding::ok(check, "cgroup limit unknown", "bounded by the agent's own limits"),
    });
    findings
}

fn sysctls(facts: &NodeFacts) -> Vec<DoctorFinding> {
    let check = "sysctl";
    let mut findings = Vec::new();
    if facts.bpf_stats_enabled.is_some_and(|value| value != 0) {
        findings.push(DoctorFinding::warn(
            check,
            "kernel.bpf_stats_enabled=1",
            "the kernel times every BPF program: about 60 ns more for each drop",
            "sysctl kernel.bpf_stats_enabled=0 when you are not measuring",
        ));
    }
    if facts.bpf_jit_enable == Some(0) {
        findings.push(DoctorFinding::warn(
            check,
            "net.core.bpf_jit_enable=0",
            "BPF programs are interpreted: each drop costs several times as much",
            "sysctl net.core.bpf_jit_enable=1",
        ));
    }
    if let Some(value) = facts.unprivileged_bpf_disabled {
        let meaning = "without effect: it restricts only processes without CAP_BPF";
        findings.push(DoctorFinding::ok(check, format!("kernel.unprivileged_bpf_disabled={value}"), meaning));
    }
    findings
}

/// A size for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
