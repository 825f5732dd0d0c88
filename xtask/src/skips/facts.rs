//! Facts about a machine, found out without the tests that depend on them.

use std::fmt;
use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cluster_programs::COLLECTOR;
use crate::{machine, setup};

/// The machine that a step's tests ran on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// This one. `whole` is false when a filter chose some of the tests.
    Here { whole: bool },
    /// A virtual machine with a Debian kernel of this version. `fresh` when the first test finds no netfilter module loaded.
    Vm { linux: (u32, u32), fresh: bool },
}

impl Machine {
    /// The virtual machine of a kernel such as `6.12`.
    pub fn vm(kernel: &str, fresh: bool) -> Machine {
        Machine::Vm { linux: version(kernel), fresh }
    }

    pub fn is(&self, fact: Fact) -> bool {
        match self {
            Machine::Here { whole } => fact.holds_here(*whole),
            Machine::Vm { linux, fresh } => match fact {
                Fact::Vm => true,
                Fact::LinuxBefore(major, minor) => *linux < (major, minor),
                Fact::NfTablesLoaded => !fresh,
                // It is root's and has a distribution's kernel; boot.sh copies in what the lab runs.
                _ => false,
            },
        }
    }
}

/// A fact about a machine, because of which tests can't run there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    NotRoot,
    NotDebian,
    NotX86,
    /// The cluster tests' programs are not built, and no Go that could build them is here.
    NoGo,
    /// The OpenTelemetry Collector is not built: `cargo xtask setup` builds it, a test run does not.
    NoCollector,
    NoBuildah,
    /// A filter chose some of the tests: no image is built for them.
    SomeTests,
    /// GitHub does not accept a connection.
    NoGitHub,
    NoBtf,
    LinuxBefore(u32, u32),
    /// The kernel module is neither built in nor loadable. `function` is one of its functions.
    NoModule {
        name: &'static str,
        function: &'static str,
    },
    /// nf_tables is loaded, built in or not there, so that no test can load it late.
    NfTablesLoaded,
    Vm,
}

const NF_TABLES: Fact = Fact::NoModule { name: "nf_tables", function: "nft_do_chain" };

impl Fact {
    fn holds_here(self, whole: bool) -> bool {
        match self {
            Fact::NotRoot => !machine::is_root(),
            Fact::NotDebian => machine::program("apt-get").is_none(),
            Fact::NotX86 => !cfg!(target_arch = "x86_64"),
            Fact::NoGo => setup::no_go().is_some(),
            Fact::NoCollector => !setup::are_built(&[COLLECTOR]),
            Fact::NoBuildah => machine::program("buildah").is_none(),
            Fact::SomeTests => !whole,
            Fact::NoGitHub => !connects("github.com:443"),
            Fact::NoBtf => !Path::new("/sys/kernel/btf/vmlinux").exists(),
            Fact::LinuxBefore(major, minor) => version(&read("/proc/sys/kernel/osrelease")) < (major, minor),
            Fact::NoModule { name, function } => !has_function(function) && !can_load(name),
            Fact::NfTablesLoaded => has_function("nft_do_chain") || NF_TABLES.holds_here(whole),
            Fact::Vm => false,
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::NotRoot => f.write_str("no root"),
            Fact::NotDebian => f.write_str("no apt-get: not Debian"),
            Fact::NotX86 => f.write_str("another processor than x86_64"),
            Fact::NoGo => f.write_str("no Go 1.26"),
            Fact::NoCollector => f.write_str("no OpenTelemetry Collector"),
            Fact::NoBuildah => f.write_str("no buildah"),
            Fact::SomeTests => f.write_str("a filter"),
            Fact::NoGitHub => f.write_str("no way to GitHub"),
            Fact::NoBtf => f.write_str("no BTF of the kernel"),
            Fact::LinuxBefore(major, minor) => write!(f, "Linux before {major}.{minor}"),
            Fact::NoModule { name, .. } => write!(f, "no kernel module {name}"),
            Fact::NfTablesLoaded => f.write_str("nf_tables loaded or built in"),
            Fact::Vm => f.write_str("the small system of `cargo xtask vm`"),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Major and minor of a kernel release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether the kernel, or a module that is loaded, has this function.
fn has_function(name: &str) -> bool {
    read("/proc/kallsyms").lines().any(|line| line.split_ascii_whitespace().nth(2) == Some(name))
}

fn can_load(module: &str) -> bool {
    let modprobe = machine::program("modprobe");
    let output = modprobe.and_then(|path| Command::new(path).args(["--dry-run", "--quiet", module]).output().ok());
    output.is_some_and(|output| output.status.success())
}

fn connects(to: &str) -> bool {
    let addresses = to.to_socket_addrs().into_iter().flatten();
    addresses.take(2).any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(version("6.12.3-1-cloud-amd64"), (6, 12));
        assert!(Machine::vm("6.1", false).is(Fact::LinuxBefore(6, 7)));
        assert!(!Machine::vm("6.12", false).is(Fact::LinuxBefore(6, 7)));
    }

    #[test]
    fn a_running_kernels_functions_are_found() {
        assert!(has_function("schedule"), "a function that every kernel has");
        assert!(!has_function("no_such_function"));
    }
}
