//! eBPF enforcers: tc and TCX, XDP, cgroup_skb.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use netpol_trace_tests::bpf_fs::BpfFs;
use netpol_trace_tests::program::{CountingProgram, Kind, XdpMode};
use netpol_trace_tests::row::{Expect, PORT, Row, policy, since};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{require, test_name};

/// A row whose enforcer is a program that `attach` attaches. The value that `attach` returns keeps it attached. Packets go from the client
/// to the server's `port`.
fn row<T>(
    test: &'static str,
    kind: Kind,
    port: u16,
    expect: Expect,
    attach: impl FnOnce(&Row, &CountingProgram) -> Result<T>,
) -> Result<()> {
    let mut row = Row::new(test)?;
    let attached =
        CountingProgram::load(kind, port).and_then(|program| attach(&row, &program).map(|link| (link, program)));
    let (_link, program) = attached.map_err(|error| missing(format!("{error:#}")))?;
    row.watch()?;
    row.to_server_at(port)?;
    let counted = program.counted()?;
    if kind == Kind::CgroupIngress && !since(5, 17) {
        return row.unseen("before Linux 5.17 its drops look like any other that the socket makes");
    }
    row.check(expect, counted).map(drop)
}

/// The index of one of the node's devices.
fn ifindex(row: &Row, device: &str) -> Result<u32> {
    row.pair.lab.node().run(|| nix::net::if_::if_nametoindex(device)).with_context(|| format!("device {device}"))
}

fn tcx(test: &'static str, ingress: bool, expect: Expect) -> Result<()> {
    // The client's packets enter by its host-side interface and leave by the server's.
    let device = if ingress { "veth0" } else { "veth1" };
    row(test, Kind::Tc, PORT, expect, |row, program| {
        let index = ifindex(row, device)?;
        row.pair.lab.node().run(|| program.attach_tcx(index, ingress))
    })
}

#[test]
fn tcx_ingress() -> Result<()> {
    let expect = Expect { reason: "TC_INGRESS", ..policy("tc", "ingress", "drop") };
    require!(tcx(test_name!(), true, expect));
    Ok(())
}

#[test]
fn tcx_egress() -> Result<()> {
    let expect = Expect { reason: "TC_EGRESS", ..policy("tc", "egress", "drop") };
    require!(tcx(test_name!(), false, expect));
    Ok(())
}

/// The older way: a filter below the clsact qdisc.
fn clsact(test: &'static str, direction: &str, device: &str, expect: Expect) -> Result<()> {
    row(test, Kind::Tc, PORT, expect, |row, program| {
        let node = row.pair.lab.node();
        // A BPF file system for as long as tc needs the path.
        let mount = BpfFs::mount()?;
        let pin = format!("{}/program", mount.path().display());
        program.pin(&pin)?;
        node.command("tc", &["qdisc", "add", "dev", device, "clsact"], "")?;
        let filter = ["filter", "add", "dev", device, direction, "bpf", "direct-action", "object-pinned", &pin];
        node.command("tc", &filter, "").map(drop)
    })
}

#[test]
fn clsact_ingress() -> Result<()> {
    require!(clsact(test_name!(), "ingress", "veth0", policy("tc", "ingress", "drop")));
    Ok(())
}

#[test]
fn clsact_egress() -> Result<()> {
    require!(clsact(test_name!(), "egress", "veth1", policy("tc", "egress", "drop")));
    Ok(())
}

fn xdp(test: &'static str, mode: XdpMode) -> Result<()> {
    row(test, Kind::Xdp, PORT, policy("xdp", "ingress", "drop"), |row, program| {
        let index = ifindex(row, "veth0")?;
        row.pair.lab.node().run(|| program.attach_xdp(index, mode))
    })
}

#[test]
fn xdp_on_veth() -> Result<()> {
    require!(xdp(test_name!(), XdpMode::Native));
    Ok(())
}

#[test]
fn xdp_generic() -> Result<()> {
    require!(xdp(test_name!(), XdpMode::Generic));
    Ok(())
}

/// On this process's own cgroup; the port is no other test's.
fn cgroup(test: &'static str, kind: Kind, port: u16, expect: Expect) -> Result<()> {
    row(test, kind, port, expect, |row, program| {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, path, "cgroup2", ..] => Some(path.to_owned()),
            _ => None,
        });
        let cgroups = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        let (mount, own) = mount.zip(own).context("no cgroup2 here")?;
        let directory = File::open(format!("{mount}{own}"))?;
        let link = program.attach_cgroup(directory.as_raw_fd(), kind)?;
        // The program runs for a receiving socket, so there must be one.
        let sockets = row.pair.server()?.netns.run(|| -> Result<Vec<std::net::UdpSocket>> {
            Ok(vec![std::net::UdpSocket::bind(("0.0.0.0", port))?, bind_v6_only(port)?])
        })?;
        Ok((link, sockets))
    })
}

fn bind_v6_only(port: u16) -> Result<std::net::UdpSocket> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_only_v6(true)?;
    socket.bind(&std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket.into())
}

#[test]
fn cgroup_egress() -> Result<()> {
    require!(cgroup(test_name!(), Kind::CgroupEgress, 40011, policy("cgroup", "output", "drop")));
    Ok(())
}

#[test]
fn cgroup_ingress() -> Result<()> {
    let expect = Expect { reason: "SOCKET_FILTER", ..policy("cgroup", "input", "drop") };
    require!(cgroup(test_name!(), Kind::CgroupIngress, 40012, expect));
    Ok(())
}
