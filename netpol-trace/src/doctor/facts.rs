//! Facts about the machine, from /proc, /sys and the hooks that were tried. `None` where a fact is not known, mostly because
//! a permission is missing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// What [`super::diagnose`] needs to know of the node.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// `uname -r`.
    pub release: Option<String>,
    pub btf: BtfState,
    pub hooks: Vec<HookCheck>,
    /// The effective capabilities: bit N is capability N.
    pub capabilities: Option<u64>,
    /// In any other user namespace the kernel does not accept capabilities for bpf(2).
    pub initial_user_namespace: Option<bool>,
    /// Mode of the system call filter: 2 is a profile, such as container runtimes set.
    pub seccomp: Option<u32>,
    pub lockdown: LockdownMode,
    pub symbols: KallsymsState,
    pub kptr_restrict: Option<u32>,
    /// Soft limit of locked memory in bytes; `u64::MAX` is unlimited.
    pub memlock: Option<u64>,
    /// The cgroup's memory limit in bytes; `u64::MAX` is unlimited.
    pub memory_max: Option<u64>,
    pub bpf_stats_enabled: Option<u32>,
    pub bpf_jit_enable: Option<u32>,
    pub unprivileged_bpf_disabled: Option<u32>,
    /// Whether the process is in the host's network namespace.
    pub host_network: Option<bool>,
    /// File names in /etc/cni/net.d.
    pub cni_configurations: Vec<String>,
}

/// The kernel's type information.
#[derive(Debug, Clone, Default)]
pub enum BtfState {
    #[default]
    Absent,
    /// Its size in bytes.
    Present(u64),
    Unreadable(String),
}

/// A hook that was loaded, attached and detached again.
#[derive(Debug, Clone)]
pub struct HookCheck {
    pub name: String,
    /// How it attached, or why not.
    pub result: Result<String, String>,
    /// What records lack without it, for a hook that drops do not need.
    pub costs: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LockdownMode {
    /// The kernel has no lockdown.
    Absent,
    None,
    Integrity,
    Confidentiality,
    #[default]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KallsymsState {
    Addresses,
    /// Names are shown, every address is 0.
    Hidden,
    #[default]
    Unreadable,
}

/// Gathers the facts; `hooks` are the results of trying each hook.
pub fn gather(hooks: Vec<HookCheck>) -> NodeFacts {
    let mut facts = read(Path::new("/"), hooks);
    if facts.lockdown == LockdownMode::Unknown
        && let Some(text) = unmounted_lockdown()
    {
        facts.lockdown = lockdown(&text);
    }
    facts
}

/// Reads the files below `root`.
fn read(root: &Path, hooks: Vec<HookCheck>) -> NodeFacts {
    let status = text(root, "proc/self/status").unwrap_or_default();
    let capabilities = field(&status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    NodeFacts {
        release: text(root, "proc/sys/kernel/osrelease").map(|release| release.trim().to_owned()),
        btf: match fs::metadata(root.join("sys/kernel/btf/vmlinux")) {
            Ok(meta) => match File::open(root.join("sys/kernel/btf/vmlinux")) {
                Ok(_) => BtfState::Present(meta.len()),
                Err(error) => BtfState::Unreadable(error.to_string()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => BtfState::Absent,
            Err(error) => BtfState::Unreadable(error.to_string()),
        },
        hooks,
        capabilities,
        initial_user_namespace: text(root, "proc/self/uid_map")
            .map(|map| map.split_whitespace().eq(["0", "0", "4294967295"])),
        seccomp: field(&status, "Seccomp:").and_then(|mode| mode.parse().ok()),
        lockdown: text(root, "sys/kernel/security/lockdown").map_or(LockdownMode::Unknown, |text| lockdown(&text)),
        symbols: symbols(root),
        kptr_restrict: number(root, "proc/sys/kernel/kptr_restrict"),
        memlock: text(root, "proc/self/limits").and_then(|limits| memlock(&limits)),
        memory_max: memory_max(root),
        bpf_stats_enabled: number(root, "proc/sys/kernel/bpf_stats_enabled"),
        bpf_jit_enable: number(root, "proc/sys/net/core/bpf_jit_enable"),
        unprivileged_bpf_disabled: number(root, "proc/sys/kernel/unprivileged_bpf_disabled"),
        host_network: host_network(root),
        cni_configurations: list(root, "etc/cni/net.d"),
    }
}

/// Reads a text file of /proc or /sys.
fn text(root: &Path, path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    // These files are short; a bind mount in their place may not be.
    File::open(root.join(path)).ok()?.take(1 << 20).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn number(root: &Path, path: &str) -> Option<u32> {
    text(root, path)?.trim().parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn list(root: &Path, path: &str) -> Vec<String> {
    let entries = fs::read_dir(root.join(path)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// `none [integrity] confidentiality`: the brackets mark the mode in force.
fn lockdown(text: &str) -> LockdownMode {
    match text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']')) {
        Some("none") => LockdownMode::None,
        Some("integrity") => LockdownMode::Integrity,
        Some("confidentiality") => LockdownMode::Confidentiality,
        _ => LockdownMode::Unknown,
    }
}

/// The text of the lockdown file where securityfs is not mounted: read from a detached mount of our own, which ends with its
/// file descriptor. `Some("[none]")` for a kernel without lockdown.
fn unmounted_lockdown() -> Option<String> {
    use rustix::fs::{Mode, OFlags, openat};
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("securityfs", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    fsconfig_create(&context).ok()?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).ok()?;
    match openat(&mount, "lockdown", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => io::read_to_string(File::from(file).take(4096)).ok(),
        Err(rustix::io::Errno::NOENT) => Some("[none]".to_owned()),
        Err(_) => None,
    }
}

/// Looks for one address that is not 0: the kernel shows all addresses or none.
fn symbols(root: &Path) -> KallsymsState {
    let Some(text) = text(root, "proc/kallsyms") else { return KallsymsState::Unreadable };
    let mut addresses = text.lines().filter_map(|line| line.split(' ').next()).filter(|a| !a.is_empty()).peekable();
    if addresses.peek().is_none() {
        KallsymsState::Unreadable
    } else if addresses.any(|address| address.bytes().any(|digit| digit != b'0')) {
        KallsymsState::Addresses
    } else {
        KallsymsState::Hidden
    }
}

/// `Max locked memory   8388608   8388608   bytes`: the soft limit comes first.
fn memlock(limits: &str) -> Option<u64> {
    match field(limits, "Max locked memory")?.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// The smallest limit on the way from this process's cgroup to the root, in cgroup v2 or v1.
fn memory_max(root: &Path) -> Option<u64> {
    let cgroups = text(root, "proc/self/cgroup")?;
    let of = |prefix: &str, controller: &str| {
        let mut lines = cgroups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let (_, path) = lines.find(|(names, _)| names.split(',').any(|name| name == controller))?;
        let path = Path::new(path.trim_start_matches('/'));
        let mut limits = path.ancestors().filter_map(|dir| {
            let file = if controller.is_empty() { "memory.max" } else { "memory.limit_in_bytes" };
            let text = text(root, Path::new(prefix).join(dir).join(file).to_str()?)?;
            match text.trim() {
                "max" => Some(u64::MAX),
                // cgroup v1 writes "no limit" as the largest multiple of the page size.
                bytes => bytes.parse().ok().map(|n: u64| if n > i64::MAX as u64 - 65536 { u64::MAX } else { n }),
            }
        });
        let first = limits.next()?;
        Some(limits.fold(first, u64::min))
    };
    of("sys/fs/cgroup", "").or_else(|| of("sys/fs/cgroup/memory", "memory"))
}

/// Compares the network namespace with process 1's. That is the host's only if process 2 is kthreadd, the kernel thread: else
/// this is another process namespace.
fn host_network(root: &Path) -> Option<bool> {
    let kthreadd = text(root, "proc/2/comm")?;
    if kthreadd.trim() != "kthreadd" {
        return None;
    }
    let own = fs::read_link(root.join("proc/self/ns/net")).ok()?;
    Some(own == fs::read_link(root.join("proc/1/ns/net")).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn an_empty_proc_is_all_unknown() {
        let dir = tree(&[]);
        let facts = read(dir.path(), Vec::new());
        assert_eq!(facts.release, None);
        assert_eq!(facts.capabilities, None);
        assert_eq!(facts.lockdown, LockdownMode::Unknown);
        assert_eq!(facts.symbols, KallsymsState::Unreadable);
        assert_eq!(facts.memory_max, None);
    }

    #[test]
    fn the_lockdown_mode_is_the_bracketed_one() {
        for (text, mode) in [
            ("[none] integrity confidentiality\n", LockdownMode::None),
            ("none [integrity] confidentiality\n", LockdownMode::Integrity),
            ("none integrity [confidentiality]\n", LockdownMode::Confidentiality),
            ("", LockdownMode::Unknown),
        ] {
            assert_eq!(lockdown(text), mode, "{text}");
        }
    }

    #[test]
    fn hidden_addresses_differ_from_shown_ones() {
        let kallsyms = |text| symbols(tree(&[("proc/kallsyms", text)]).path());
        assert_eq!(kallsyms("0000000000000000 T _text\n0000000000000000 t x\n"), KallsymsState::Hidden);
        assert_eq!(kallsyms("0000000000000000 A fixed\nffffffff81000000 T _text\n"), KallsymsState::Addresses);
        assert_eq!(kallsyms(""), KallsymsState::Unreadable);
    }

    #[test]
    fn the_smallest_memory_limit_counts() {
        let dir = tree(&[
            ("proc/self/cgroup", "0::/kubepods/pod1/c1\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/memory.max", "max\n"),
            ("sys/fs/cgroup/kubepods/pod1/memory.max", "134217728\n"),
            ("sys/fs/cgroup/kubepods/memory.max", "8589934592\n"),
        ]);
        assert_eq!(memory_max(dir.path()), Some(128 << 20));
        let v1 = tree(&[
            ("proc/self/cgroup", "4:cpu,memory:/a\n1:name=systemd:/\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(memory_max(v1.path()), Some(u64::MAX));
    }

    #[test]
    fn limits_are_read() {
        assert_eq!(memlock("Limit  Soft Hard\nMax locked memory   8388608   8388608   bytes\n"), Some(8 << 20));
        assert_eq!(memlock("Max locked memory   unlimited   unlimited   bytes\n"), Some(u64::MAX));
    }
}
