//! Pods on a bridge, and pods behind a tunnel.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use netpol_trace_tests::netns::Netns;
use netpol_trace_tests::pair::{CLIENT, CLIENT6, SERVER, SERVER6, pod};
use netpol_trace_tests::row::{PORT, Row, datagrams, policy};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{iptables, require, test_name};

/// Puts both pods on a bridge of the node, so that their packets are bridged, not routed.
fn bridge(row: &Row) -> Result<()> {
    let node = row.pair.lab.node();
    node.ip("link add br0 type bridge\nlink set veth0 master br0\nlink set veth1 master br0\nlink set br0 up\n")?;
    for (host, v4, v6) in [("client", SERVER, SERVER6), ("server", CLIENT, CLIENT6)] {
        let netns = &row.pair.lab.host(host)?.netns;
        netns.ip(&format!("route add {v4}/32 dev eth0 scope link\nroute add {v6}/128 dev eth0\n"))?;
    }
    Ok(())
}

#[test]
fn nft_bridge_family() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    bridge(&row)?;
    // With br_netfilter at work, Linux 6.1 passes over hooks of the bridge family that have its priority.
    for family in ["iptables", "ip6tables"] {
        let _ = row.pair.lab.node().sysctl(&format!("bridge/bridge-nf-call-{family}"), "0");
    }
    row.pair.lab.enforce(
        "table bridge t {\nchain c {\ntype filter hook forward priority 0;\nudp dport 9 counter drop comment \"row\"\n}\n}\n",
    )?;
    row.watch()?;
    row.to_server()?;
    let counted = row.pair.counted("row")?;
    row.check(policy("nftables", "bridge", "drop"), counted).map(drop)
}

/// With br_netfilter, bridged packets pass the IP hooks.
fn br_netfilter(test: &'static str, backend: &str, mechanism: &'static str) -> Result<()> {
    let mut row = Row::new(test)?;
    bridge(&row)?;
    let node = row.pair.lab.node();
    for family in ["iptables", "ip6tables"] {
        let sysctl = format!("bridge/bridge-nf-call-{family}");
        if node.sysctl(&sysctl, "1").is_err() {
            // Only here does the kernel not load its module by itself.
            let _ = std::process::Command::new("modprobe").arg("br_netfilter").output();
        }
        node.sysctl(&sysctl, "1").map_err(|error| missing(format!("no br_netfilter here: {error:#}")))?;
    }
    let rule = "-A FORWARD -p udp --dport 9 -m comment --comment row -j DROP";
    iptables::can_load(node, backend)?;
    iptables::load(node, backend, rule)?;
    row.watch()?;
    row.to_server()?;
    let counted = iptables::counted(row.pair.lab.node(), backend, "row")?;
    row.check(policy(mechanism, "bridge", "drop"), counted).map(drop)
}

#[test]
fn br_netfilter_legacy() -> Result<()> {
    require!(br_netfilter(test_name!(), "legacy", "iptables-legacy"));
    Ok(())
}

#[test]
fn br_netfilter_nft() -> Result<()> {
    require!(br_netfilter(test_name!(), "nft", "nftables"));
    Ok(())
}

/// Another node's pod, over VXLAN: the record is about the inner packet.
#[test]
fn vxlan() -> Result<()> {
    const UNDERLAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 3);
    const UNDERLAY6: Ipv6Addr = Ipv6Addr::new(0xfc00, 0xf853, 0xccd, 0xe793, 0, 0, 0, 3);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);
    const REMOTE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 2);
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.attach("node-b", UNDERLAY, UNDERLAY6)?;
    let node = row.pair.lab.node();
    let other: &Netns = &row.pair.lab.host("node-b")?.netns;
    let here = netpol_trace_tests::pair::NODE;
    node.ip(&format!(
        "link add vxlan0 type vxlan id 7 local {here} remote {UNDERLAY} dstport 8472\n\
         addr add 10.244.0.1/32 dev vxlan0\naddr add fe80::a/64 dev vxlan0 nodad\nlink set vxlan0 up\n\
         route add {REMOTE}/32 dev vxlan0\nroute add {REMOTE6}/128 dev vxlan0\n"
    ))?;
    other.ip(&format!(
        "link add vxlan0 type vxlan id 7 local {UNDERLAY} remote {here} dstport 8472\n\
         addr add {REMOTE}/32 dev vxlan0\naddr add {REMOTE6}/128 dev vxlan0 nodad\naddr add fe80::b/64 dev vxlan0 nodad\n\
         link set vxlan0 up\nroute add 10.244.0.1/32 dev vxlan0\n\
         route add 10.244.1.0/24 via 10.244.0.1 dev vxlan0 onlink\nroute add fd00:10:244:1::/64 via fe80::a dev vxlan0\n"
    ))?;
    let remote = pod("remote", &[REMOTE.into(), REMOTE6.into()]).replace("nodeName: node-a", "nodeName: node-b");
    row.pair.add("remote.yaml", &remote)?;
    row.pair.lab.enforce(
        "table inet t {\nchain c {\ntype filter hook forward priority 0;\nudp dport 9 counter drop comment \"row\"\n}\n}\n",
    )?;
    row.watch()?;
    let sources = [
        datagrams(&row.pair.lab.host("node-b")?.netns, REMOTE.into(), (SERVER, PORT).into())?,
        datagrams(&row.pair.lab.host("node-b")?.netns, REMOTE6.into(), (SERVER6, PORT).into())?,
    ];
    row.note(sources[0], (SERVER, PORT).into());
    row.note(sources[1], (SERVER6, PORT).into());
    // The first packet to an unknown neighbour waits for its address; sent at last, all are counted.
    netpol_trace_tests::eventually("the packets of the other node", || {
        Ok((row.pair.counted("row")? == 2 * netpol_trace_tests::row::DATAGRAMS).then_some(()))
    })?;
    let counted = row.pair.counted("row")?;
    row.check(policy("nftables", "forward", "drop"), counted).map(drop)
}
