//! nftables: every family and hook.

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::pair::{CLIENT, NODE, NODE6, SERVER, SERVER6};
use netpol_trace_tests::row::{DATAGRAMS, Expect, PORT, Row, other, policy, since, syns_with};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::traffic::{self, TcpOptions};
use netpol_trace_tests::{nft, require, test_name};

/// A row whose enforcer is one ruleset, and whose packets go from the client to the server.
fn forward(test: &'static str, ruleset: &str, expect: Expect) -> Result<()> {
    let mut row = Row::new(test)?;
    match nft::load(row.pair.lab.node(), ruleset) {
        // The kernel refuses what nft has parsed: the kernel lacks this kind of rule.
        Err(error) if format!("{error:#}").contains("Could not process rule") => {
            return Err(missing(format!("this kernel has no such rules: {error:#}")));
        }
        loaded => loaded?,
    }
    row.watch()?;
    match ruleset.split_whitespace().nth(1) {
        Some("ip") => row.to_server_of(true)?,
        Some("ip6") => row.to_server_of(false)?,
        _ => row.to_server()?,
    }
    let counted = row.pair.counted("row")?;
    row.check(expect, counted).map(drop)
}

macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident: $expect:expr, $rules:expr;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() -> Result<()> {
            require!(forward(test_name!(), $rules, $expect));
            Ok(())
        }
    )*};
}

const DROP: Expect = policy("nftables", "forward", "drop");

rows! {
    inet_drop: DROP, r#"table inet t { chain c { type filter hook forward priority 0; udp dport 9 counter drop comment "row";
}
}"#;
    ip_drop: DROP, r#"table ip t { chain c { type filter hook forward priority 0; udp dport 9 counter drop comment "row";
}
}"#;
    ip6_drop: DROP, r#"table ip6 t { chain c { type filter hook forward priority 0; udp dport 9 counter drop comment "row";
}
}"#;
    chain_policy: DROP, r#"table inet t { chain c { type filter hook forward priority 0; policy drop; udp dport 9 counter comment "row";
}
}"#;
    /// The enforcer's chain is reached by a map of verdicts; kube-proxy's reject in the same hook drops other packets.
    verdict_map: DROP, r#"
        table inet kube-proxy { chain c { type filter hook forward priority 0; udp dport 10 counter reject;
}
}
        table inet calico {
            chain filter-cali-tw { udp dport 9 counter drop comment "row"; }
            chain c { type filter hook forward priority 1; meta l4proto vmap { udp : jump filter-cali-tw };
}
        }"#;
    reject: policy("nftables", "forward", "reject"), r#"table inet t { chain c { type filter hook forward priority 0; udp dport 9 counter reject comment "row";
}
}"#;
    postrouting: policy("nftables", "postrouting", "drop"), r#"table inet t { chain c { type filter hook postrouting priority 300; udp dport 9 counter drop comment "row";
}
}"#;
    prerouting: policy("nftables", "prerouting", "drop"), r#"table inet t { chain c { type filter hook prerouting priority 0; ct state new udp dport 9 counter drop comment "row";
}
}"#;
    /// Before conntrack: the device's ingress would look the same, but has no rules.
    prerouting_raw: policy("nftables", "prerouting", "drop"), r#"table inet t { chain c { type filter hook prerouting priority -300; udp dport 9 counter drop comment "row";
}
}"#;
    netdev_ingress: policy("nftables", "ingress", "drop"), r#"table netdev t { chain c { type filter hook ingress device "veth0" priority 0; udp dport 9 counter drop comment "row";
}
}"#;
    netdev_egress: policy("nftables", "egress", "drop"), r#"table netdev t { chain c { type filter hook egress device "veth1" priority 0; udp dport 9 counter drop comment "row";
}
}"#;
}

/// Rules that drop and rules that reject in the same hook: only a kernel that shows rejects tells which rule it was.
fn drop_and_reject(test: &'static str, ipv4: bool, rejects: bool) -> Result<()> {
    let mut row = Row::new(test)?;
    let (first, second) = if rejects { ("reject", "drop") } else { ("drop", "reject") };
    row.pair.lab.enforce(&format!(
        "table inet t {{\nchain c {{\ntype filter hook forward priority 0;\n\
         udp dport 9 counter {first} comment \"row\"\nudp dport 10 counter {second}\n}}\n}}\n"
    ))?;
    // The tc hook would see the answer too.
    row.watch_with(&["--all-drops", "--hooks", "kfree_skb"])?;
    let shown = row.shows_rejects()? || rejects && ipv4 && row.shows_icmp_errors()?;
    row.to_server_of(ipv4)?;
    let counted = row.pair.counted("row")?;
    row.check(policy("nftables", "forward", if shown { first } else { "unknown" }), counted).map(drop)
}

#[test]
fn drop_beside_reject() -> Result<()> {
    require!(drop_and_reject(test_name!(), true, false));
    Ok(())
}

#[test]
fn drop_beside_reject_ip6() -> Result<()> {
    require!(drop_and_reject(test_name!(), false, false));
    Ok(())
}

#[test]
fn reject_beside_drop() -> Result<()> {
    require!(drop_and_reject(test_name!(), true, true));
    Ok(())
}

#[test]
fn reject_beside_drop_ip6() -> Result<()> {
    require!(drop_and_reject(test_name!(), false, true));
    Ok(())
}

/// More rejects than ICMP errors, which the kernel limits. A packet without an answer was rejected all the same.
#[test]
fn reject_beyond_the_rate_limit() -> Result<()> {
    const SENT: usize = 60;
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.enforce(
        "table inet t {\nchain c {\ntype filter hook forward priority 0;\n\
         udp dport 9 counter reject comment \"row\"\nudp dport 10 counter drop\n}\n}\n",
    )?;
    row.watch_with(&["--all-drops", "--hooks", "kfree_skb"])?;
    let shown = row.shows_rejects()?;
    let to = (SERVER, PORT).into();
    let from = traffic::udp(&row.pair.client()?.netns, CLIENT.into(), [to; SENT], 32)?;
    row.note(from, to);
    let counted = row.pair.counted("row")?;
    let text = row.pair.lab.node().run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let answers = icmp_errors(&text).with_context(|| format!("no ICMP counters in {text}"))?;
    ensure!(answers < counted, "{answers} answers to {counted} packets: the limit was not reached");
    // No record may say `drop`.
    row.seen(counted)?;
    let dropped = row.records()?.into_iter().find(|record| record.text("/action") == "drop");
    ensure!(dropped.is_none(), "called a drop: {dropped:?}");
    row.check(policy("nftables", "forward", if shown { "reject" } else { "" }), counted).map(drop)
}

/// The number of ICMP unreachable errors that a network namespace has sent, from its /proc/net/snmp.
fn icmp_errors(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|name| name == "OutDestUnreachs")?;
    values.split(' ').nth(at)?.parse().ok()
}

/// A TCP reset, seen by an agent that can't read the rules: it runs in another network namespace.
#[test]
fn reset_elsewhere() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.enforce(
        r#"table inet t { chain c { type filter hook forward priority 0; tcp dport 9 counter reject with tcp reset comment "row";
}
}"#,
    )?;
    row.watch_elsewhere()?;
    let shown = row.shows_rejects()?;
    syns_with(&mut row, &[(SERVER, PORT).into(), (SERVER6, PORT).into()], TcpOptions::default())?;
    let counted = row.pair.counted("row")?;
    let mechanism = row.nftables_mechanism_if_unread(counted)?;
    row.check(policy(mechanism, "forward", if shown { "reject" } else { "unknown" }), counted).map(drop)
}

/// From a pod to its own node, which NetworkPolicy always allows: an enforcer's chain that drops it disagrees; any other is
/// the node's own firewall.
fn input(test: &'static str, chain: &str, cause: &'static str) -> Result<()> {
    let mut row = Row::new(test)?;
    row.pair.add_policy(&netpol_trace_tests::pair::egress_policy("deny-client", "client"))?;
    row.pair.lab.enforce(&format!(
        "table inet t {{\nchain {chain} {{\nudp dport 9 counter drop comment \"row\"\n}}\n\
         chain c {{\ntype filter hook input priority 0; jump {chain}\n}}\n}}\n"
    ))?;
    row.watch()?;
    row.send("client", &[(NODE, PORT).into(), (NODE6, PORT).into()])?;
    let counted = row.pair.counted("row")?;
    row.check(Expect { action: "drop", ..other("nftables", "input", cause) }, counted).map(drop)
}

#[test]
fn input_of_an_enforcer() -> Result<()> {
    require!(input(test_name!(), "cali-wl-to-host", "disagrees"));
    Ok(())
}

#[test]
fn input_of_nobody() -> Result<()> {
    require!(input(test_name!(), "mine", "host_firewall"));
    Ok(())
}

/// The node's own packets: a node may always reach its pods, so this is no policy.
#[test]
fn output() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.enforce(
        r#"table inet t { chain c { type filter hook output priority 0; udp dport 9 counter drop comment "row";
}
}"#,
    )?;
    row.watch()?;
    row.from_node()?;
    let counted = row.pair.counted("row")?;
    row.check(Expect { action: "drop", ..other("nftables", "output", "host_firewall") }, counted).map(drop)
}

/// The same on a node whose enforcer has chains, but none at this hook.
#[test]
fn output_of_somebody_else() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.enforce(
        r#"table inet t {
        chain cali-fw { udp dport 10 counter drop; }
        chain f { type filter hook forward priority 0; jump cali-fw; }
        chain c { type filter hook output priority 0; udp dport 9 counter reject comment "row";
}
}"#,
    )?;
    row.watch()?;
    row.from_node()?;
    let counted = row.pair.counted("row")?;
    row.check(Expect { action: "reject", ..other("nftables", "output", "host_firewall") }, counted).map(drop)
}

/// The rules change while the agent runs: no later record has the old rules' action, and soon records have the new rules'.
#[test]
fn changed_rules() -> Result<()> {
    const RULES: [&str; 2] = [
        "table inet t {\nchain c {\ntype filter hook forward priority 0;\nudp dport 9 counter drop comment \"row\"\n}\n}\n",
        "flush ruleset\n\
         table inet t {\nchain c {\ntype filter hook forward priority 0;\nudp dport 9 counter reject comment \"row\"\n}\n}\n",
    ];
    let mut row = require!(Row::new(test_name!()));
    row.pair.lab.enforce(RULES[0])?;
    row.watch()?;
    row.to_server()?;
    row.seen(2 * DATAGRAMS)?;
    let before = row.records()?;
    assert!(before.iter().all(|record| record.text("/action") == "drop"), "{before:?}");
    row.pair.lab.enforce(RULES[1])?;
    let mut sent = 2 * DATAGRAMS;
    netpol_trace_tests::eventually("a record that says reject", || {
        row.to_server()?;
        sent += 2 * DATAGRAMS;
        row.seen(sent)?;
        let mut records = row.records()?;
        records.retain(|record| !before.contains(record));
        assert!(records.iter().all(|record| record.text("/action") != "drop"), "{records:?}");
        Ok(records.iter().any(|record| record.text("/action") == "reject").then_some(()))
    })?;
    // The new rules' counters begin at 0.
    let counted = row.pair.counted("row")? + 2 * DATAGRAMS;
    // Before the agent has read the new rules, only the call site names the mechanism, from 6.7 on.
    row.check(policy(if since(6, 7) { "nftables" } else { "" }, "forward", ""), counted).map(drop)
}
