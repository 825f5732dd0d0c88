//! Small programs that the tests load and attach with bpf(2), without the agent's loader: one that stands in for a CNI's tc program, and
//! ones that do nothing, for comparison.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::process;
use crate::bench::statistics::Spent;
use crate::skip::missing;

use crate::netns::Netns;

/// Side of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Ingress,
    Egress,
}

/// Position among the programs that are attached already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    First,
    Last,
}

/// A loaded program, unloaded when dropped.
#[derive(Debug)]
pub struct LoadedProgram(OwnedFd);

/// A program on its hook, detached when dropped.
#[derive(Debug)]
pub struct Link(#[expect(dead_code, reason = "held for its end")] OwnedFd);

const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;
const TCX_NEXT: i32 = -1;

impl LoadedProgram {
    /// Drops every packet of `length` bytes (from L2 on) and passes the others with TC_ACT_OK, so that later programs don't run.
    pub fn dropping(name: &str, length: u32) -> Result<LoadedProgram> {
        LoadedProgram::load(
            name,
            &[
                // r2 = skb->len; if r2 == length goto +2; return OK; return SHOT
                [0x61, 0x12, 0, 0, 0, 0, 0, 0],
                jump_if_equal(length),
                set(TC_ACT_OK),
                EXIT,
                set(TC_ACT_SHOT),
                EXIT,
            ],
        )
    }

    /// Does nothing: the least that a program can cost.
    pub fn empty(name: &str) -> Result<LoadedProgram> {
        LoadedProgram::load(name, &[set(TCX_NEXT), EXIT])
    }

    /// Does nothing at a tracepoint of the kernel, attached by its type (BTF).
    pub fn empty_at(tracepoint: &str) -> Result<(LoadedProgram, Link)> {
        const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
        const BPF_TRACE_RAW_TP: u64 = 23;
        // Kept until the load, since the attributes have its address.
        let code = [set(0), EXIT];
        let mut attr = attributes("empty", process::TRACING, &code)?;
        attr[8] = BPF_TRACE_RAW_TP << 32;
        attr[13] = u64::from(btf_id(&format!("btf_trace_{tracepoint}"))?) << 32;
        let program = LoadedProgram(bpf(BPF_PROG_LOAD, &attr).context("load a program for a tracepoint")?);
        let mut attr = [0u64; 16];
        attr[1] = program.0.as_raw_fd() as u64;
        let link = Link(bpf(BPF_RAW_TRACEPOINT_OPEN, &attr).context("attach to a tracepoint")?);
        Ok((program, link))
    }

    fn load(name: &str, code: &[[u8; 8]]) -> Result<LoadedProgram> {
        let attr = attributes(name, process::SCHED_CLS, code)?;
        Ok(LoadedProgram(bpf(BPF_PROG_LOAD, &attr).context("load a tc program")?))
    }

    /// Attaches to `device` of a network namespace by TCX (Linux 6.6).
    pub fn attach(&self, netns: &Netns, device: &str, side: Side, order: Order) -> Result<Link> {
        const BPF_LINK_CREATE: i32 = 28;
        const BPF_F_BEFORE: u64 = 8;
        const BPF_F_AFTER: u64 = 16;
        let kind: u64 = if side == Side::Ingress { 46 } else { 47 };
        let flags = if order == Order::First { BPF_F_BEFORE } else { BPF_F_AFTER };
        netns.run(|| {
            let index = nix::net::if_::if_nametoindex(device)?;
            let mut attr = [0u64; 16];
            attr[0] = self.0.as_raw_fd() as u64 | u64::from(index) << 32;
            attr[1] = kind | flags << 32;
            Ok(Link(bpf(BPF_LINK_CREATE, &attr).with_context(|| format!("attach to {device} by TCX"))?))
        })
    }

    /// Its run time so far, while the kernel's statistics are on.
    pub fn spent(&self) -> Result<Spent> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        process::program(&info).map(|(_, _, spent)| spent).context("a program's numbers")
    }
}

/// Requires a kernel with TCX.
pub fn has_tcx() -> Result<()> {
    let netns = Netns::new("probe")?;
    let link = LoadedProgram::empty("probe")?.attach(&netns, "lo", Side::Ingress, Order::Last);
    link.map(drop).map_err(|error| missing(format!("no TCX here, which is in Linux 6.6 and later: {error:#}")))
}

const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// r0 = value
fn set(value: i32) -> [u8; 8] {
    let [a, b, c, d] = value.to_ne_bytes();
    [0xb7, 0, 0, 0, a, b, c, d]
}

/// if r2 == value goto +2
fn jump_if_equal(value: u32) -> [u8; 8] {
    let [a, b, c, d] = value.to_ne_bytes();
    [0x15, 2, 2, 0, a, b, c, d]
}

const BPF_PROG_LOAD: i32 = 5;

/// The attributes that load a program.
fn attributes(name: &str, kind: u32, code: &[[u8; 8]]) -> Result<[u64; 16]> {
    let license = c"GPL";
    let mut attr = [0u64; 16];
    attr[0] = u64::from(kind) | (code.len() as u64) << 32;
    attr[1] = code.as_ptr() as u64;
    attr[2] = license.as_ptr() as u64;
    // The name is at offset 48, 16 bytes with its zero.
    let mut text = [0; 16];
    let length = name.len().min(15);
    text[..length].copy_from_slice(&name.as_bytes()[..length]);
    attr[6] = u64::from_ne_bytes(text[..8].try_into()?);
    attr[7] = u64::from_ne_bytes(text[8..].try_into()?);
    Ok(attr)
}

/// The number of a type in the kernel's BTF.
fn btf_id(typedef: &str) -> Result<u32> {
    let output = Command::new("bpftool").args(["btf", "dump", "file", "/sys/kernel/btf/vmlinux"]).output();
    let text = String::from_utf8(output.context("start bpftool")?.stdout)?;
    let wanted = format!("TYPEDEF '{typedef}'");
    let line = text.lines().find(|line| line.contains(&wanted)).with_context(|| format!("no type {typedef}"))?;
    Ok(line.trim_start_matches('[').split(']').next().unwrap_or_default().parse()?)
}

pub(crate) fn bpf(command: i32, attr: &[u64; 16]) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a bpf_attr of the given size, zero where nothing is set; what it points to outlives the call. All
    // commands used here return a new descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr));
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// The ids of the BPF programs and links that a process holds.
pub fn objects(pid: u32) -> Result<BTreeSet<(&'static str, String)>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may have been closed meanwhile.
        let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        for line in info.lines() {
            for (field, kind) in [("prog_id:", "prog"), ("link_id:", "link")] {
                found.extend(line.strip_prefix(field).map(|id| (kind, id.trim().to_owned())));
            }
        }
    }
    Ok(found)
}

/// True if the kernel has a program or link with this id.
pub fn exists(kind: &str, id: &str) -> bool {
    let show = Command::new("bpftool").args([kind, "show", "id", id]).output();
    show.is_ok_and(|output| output.status.success())
}
