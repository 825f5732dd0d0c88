//! iptables: both backends, DROP and REJECT, with ipset, and by the chains of well-known enforcers.

use anyhow::Result;
use netpol_trace_tests::pair::{CLIENT, NODE, NODE6};
use netpol_trace_tests::row::{Expect, PORT, Row, other, policy};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{iptables, require, test_name};

/// A row whose enforcer is these rules, in both families; its packets go from the client to the server.
fn forward(test: &'static str, backend: &str, rules: &str, expect: Expect) -> Result<()> {
    let mut row = prepared(test, backend, rules)?;
    row.watch()?;
    row.to_server()?;
    let counted = iptables::counted(row.pair.lab.node(), backend, "row")?;
    row.check(expect, counted).map(drop)
}

/// The lab with the rules in place.
fn prepared(test: &'static str, backend: &str, rules: &str) -> Result<Row> {
    let row = Row::new(test)?;
    let node = row.pair.lab.node();
    iptables::can_load(node, backend)?;
    iptables::load(node, backend, rules)?;
    Ok(row)
}

macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident: $backend:expr, $expect:expr, $rules:expr;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() -> Result<()> {
            require!(forward(test_name!(), $backend, $rules, $expect));
            Ok(())
        }
    )*};
}

rows! {
    nft_drop: "nft", policy("nftables", "forward", "drop"), "-A FORWARD -p udp --dport 9 -m comment --comment row -j DROP";
    nft_reject: "nft", policy("nftables", "forward", "reject"), "-A FORWARD -p udp --dport 9 -m comment --comment row -j REJECT";
    legacy_drop: "legacy", policy("iptables-legacy", "forward", "drop"),
        "-A FORWARD -p udp --dport 9 -m comment --comment row -j DROP";
    legacy_reject: "legacy", policy("iptables-legacy", "forward", "reject"),
        "-A FORWARD -p udp --dport 9 -m comment --comment row -j REJECT";
    legacy_chain_policy: "legacy", policy("iptables-legacy", "forward", "drop"),
        "-A FORWARD -p udp --dport 9 -m comment --comment row
         -P FORWARD DROP";
    /// kube-router logs, then rejects; kube-proxy's rules in the same hook drop other packets.
    legacy_kube_router: "legacy", policy("iptables-legacy", "forward", "reject"),
        "-N KUBE-POD-FW-AAAA
         -N KUBE-FORWARD
         -A FORWARD -j KUBE-POD-FW-AAAA
         -A FORWARD -j KUBE-FORWARD
         -A KUBE-POD-FW-AAAA -p udp --dport 9 -m comment --comment row -j REJECT
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP";
    /// Calico's default, beside a rule that rejects and belongs to nobody.
    legacy_calico: "legacy", policy("iptables-legacy", "forward", "drop"),
        "-N cali-FORWARD
         -N cali-tw-x
         -A FORWARD -j cali-FORWARD
         -A FORWARD -p udp --dport 10 -j REJECT
         -A cali-FORWARD -g cali-tw-x
         -A cali-tw-x -p udp --dport 9 -m comment --comment row -j DROP";
}

/// A set of addresses, as kube-router and Calico have them.
#[test]
fn legacy_ipset() -> Result<()> {
    let mut row = require!(prepared(test_name!(), "legacy", ""));
    let node = row.pair.lab.node();
    let created = node.command("ipset", &["create", "blocked", "hash:ip"], "");
    require!(created.map_err(|error| missing(format!("no ipset here: {error:#}"))));
    node.command("ipset", &["add", "blocked", &CLIENT.to_string()], "")?;
    let rule = "-A FORWARD -m set --match-set blocked src -m comment --comment row -j DROP --wait";
    node.command("iptables-legacy", &rule.split(' ').collect::<Vec<_>>(), "")?;
    row.watch()?;
    row.to_server_of(true)?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(policy("iptables-legacy", "forward", "drop"), counted).map(drop)
}

/// ufw on INPUT: not a policy.
#[test]
fn legacy_host_firewall() -> Result<()> {
    let rules = "-N ufw-user-input
         -A INPUT -j ufw-user-input
         -A ufw-user-input -p udp --dport 9 -m comment --comment row -j DROP";
    let mut row = require!(prepared(test_name!(), "legacy", rules));
    row.watch()?;
    row.send("client", &[(NODE, PORT).into(), (NODE6, PORT).into()])?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(Expect { action: "drop", ..other("iptables-legacy", "input", "host_firewall") }, counted).map(drop)
}

/// A container engine's isolation in FORWARD, where a policy would deny the packet too: the enforcer has no rule there.
#[test]
fn legacy_container_engine() -> Result<()> {
    let rules = "-N DOCKER-ISOLATION-STAGE-2
         -A FORWARD -j DOCKER-ISOLATION-STAGE-2
         -A DOCKER-ISOLATION-STAGE-2 -p udp --dport 9 -m comment --comment row -j DROP";
    let mut row = require!(prepared(test_name!(), "legacy", rules));
    row.watch()?;
    row.to_server()?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(Expect { action: "drop", ..other("iptables-legacy", "forward", "host_firewall") }, counted).map(drop)
}

/// The node's own packets in OUTPUT: IPv6's REJECT lends them the loopback device.
#[test]
fn legacy_output_reject() -> Result<()> {
    let rules = "-A OUTPUT -p udp --dport 9 -m comment --comment row -j REJECT";
    let mut row = require!(prepared(test_name!(), "legacy", rules));
    row.watch()?;
    row.from_node()?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(Expect { action: "reject", ..other("iptables-legacy", "output", "host_firewall") }, counted).map(drop)
}
