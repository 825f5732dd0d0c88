//! Open vSwitch: pods on a datapath whose flows drop. Its drops have reasons from Linux 6.6 on. Before, they look like delivered packets,
//! and doctor and the status say "no coverage".

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::ovs::{DROP, Switch};
use netpol_trace_tests::pair::{CLIENT, CLIENT6, SERVER, SERVER6};
use netpol_trace_tests::row::{Expect, PORT, Row, policy, since};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{iptables, require, test_name, traffic};

/// UDP to this port is let through.
const OPEN: u16 = 10;

/// Puts both pods on a switch that drops what goes to [`PORT`].
fn switch(row: &Row) -> Result<Switch<'_>> {
    let switch = Switch::new(row.pair.lab.node()).map_err(|error| {
        // The last line is ovs-dpctl's own message.
        let why = error.root_cause().to_string();
        missing(format!("no Open vSwitch here: {}", why.lines().last().unwrap_or_default()))
    })?;
    let pods = [("client", CLIENT, CLIENT6, 1), ("server", SERVER, SERVER6, 2)];
    for (name, _, _, own) in pods {
        let host = row.pair.lab.host(name)?;
        let mut lines = format!("link set eth0 address 02:00:00:00:00:0{own}\n");
        for (_, v4, v6, other) in pods.iter().filter(|(_, _, _, other)| *other != own) {
            lines += &format!("route add {v4}/32 dev eth0 scope link\nroute add {v6}/128 dev eth0\n");
            for address in [v4.to_string(), v6.to_string()] {
                lines += &format!("neigh replace {address} lladdr 02:00:00:00:00:0{other} dev eth0\n");
            }
        }
        host.netns.ip(&lines)?;
        switch.add_port(&host.device)?;
    }
    for (port, actions) in [(PORT, DROP), (OPEN, "2")] {
        let udp = format!("udp(dst={port})");
        switch.add_flow(&format!("in_port(1),eth(),eth_type(0x0800),ipv4(proto=17,frag=no),{udp}"), actions)?;
        switch.add_flow(&format!("in_port(1),eth(),eth_type(0x86dd),ipv6(proto=17,frag=no),{udp}"), actions)?;
    }
    Ok(switch)
}

/// A datagram that the switch forwards arrives.
fn forwards(row: &Row) -> Result<()> {
    let receiver = row.pair.server()?.netns.run(|| UdpSocket::bind((SERVER, OPEN)))?;
    receiver.set_read_timeout(Some(Duration::from_secs(10)))?;
    traffic::udp(&row.pair.client()?.netns, CLIENT.into(), [(SERVER, OPEN).into()], 32)?;
    receiver.recv(&mut [0; 64]).context("the switch forwards nothing").map(drop)
}

/// Doctor's finding about Open vSwitch, and the detail of `rulesets` in the status.
fn coverage(row: &Row) -> Result<(serde_json::Value, String)> {
    let findings = row.doctor("coverage")?;
    let finding = findings.iter().find(|finding| finding["found"] == "Open vSwitch");
    let finding = finding.with_context(|| format!("doctor says nothing of Open vSwitch: {findings:?}"))?;
    Ok((finding.clone(), row.hook_detail("rulesets")?))
}

fn dropped(test: &'static str, prepare: impl FnOnce(&Row) -> Result<()>) -> Result<()> {
    let mut row = Row::new(test)?;
    prepare(&row)?;
    // Not kept: it borrows the row.
    switch(&row)?;
    row.watch()?;
    forwards(&row)?;
    row.to_server()?;
    let counted = Switch::at(row.pair.lab.node()).dropped()?;
    ensure!(counted > 0, "the switch dropped nothing");
    let (finding, status) = coverage(&row)?;
    if since(6, 6) {
        ensure!(finding["status"] == "ok" && !status.contains("Open vSwitch"), "{finding} {status:?}");
        let expect = Expect { reason: "OVS_DROP_LAST_ACTION", ..policy("ovs", "-", "drop") };
        return row.check(expect, counted).map(drop);
    }
    ensure!(finding["status"] == "warn", "{finding}");
    let meaning = finding["meaning"].as_str().unwrap_or_default();
    ensure!(meaning.contains("no coverage before Linux 6.6"), "{finding}");
    ensure!(status.contains("Open vSwitch: no coverage before Linux 6.6"), "{status:?}");
    row.unseen("before Linux 6.6 its drops look like delivered packets; doctor and the status say so")
}

#[test]
fn ovs_flow_drops() -> Result<()> {
    require!(dropped(test_name!(), |_| Ok(())));
    Ok(())
}

/// The same with kube-proxy's chains on the node, which don't drop these packets.
#[test]
fn ovs_beside_kube_proxy() -> Result<()> {
    let kube_proxy = |row: &Row| {
        let node = row.pair.lab.node();
        iptables::can_load(node, "legacy")?;
        let rules =
            "-N KUBE-FORWARD\n-A FORWARD -j KUBE-FORWARD\n-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP";
        iptables::load(node, "legacy", rules)
    };
    require!(dropped(test_name!(), kube_proxy));
    Ok(())
}
