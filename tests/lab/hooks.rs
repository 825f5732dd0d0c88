//! Drops at other hooks than FORWARD, and by REJECT.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use netpol_trace_tests::pair::{self, CLIENT, NODE, Pair, SERVER, SERVER6};
use netpol_trace_tests::traffic::{self, Outcome, TcpOptions};
use netpol_trace_tests::{can_run_lab, require};

const BRIEFLY: Duration = Duration::from_millis(300);

/// A process of the node: the drop is in OUTPUT, and the socket gets an error. NetworkPolicy always allows a pod's own node, so the cause
/// must not be `policy`.
#[test]
fn output() -> Result<()> {
    const RULES: &str = "
table inet host {
	counter out { }
	chain output {
		type filter hook output priority filter; policy accept;
		ip daddr 10.244.1.3 counter name out drop
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(RULES)?;
    // A pod with hostNetwork has the node's address: the sender is ambiguous, and no policy selects it.
    let on_host = pair::pod("on-host", &[NODE.into()]).replace("spec:\n", "spec:\n  hostNetwork: true\n");
    std::fs::write(pair.manifests().join("on-host.yaml"), on_host)?;
    let agent = pair.watch()?;
    let sent = traffic::udp(pair.lab.node(), NODE.into(), [(SERVER, 53).into()], 32);
    assert!(sent.is_err(), "sendto says EPERM");
    traffic::tcp(pair.lab.node(), NODE.into(), (SERVER, 80).into(), BRIEFLY, TcpOptions::default())?;
    let records = pair.stop_and_compare(agent, "out")?;
    for transport in ["udp", "tcp"] {
        let found = records.iter().find(|record| record.text("/network/transport") == transport);
        let record = found.unwrap_or_else(|| panic!("no {transport} record: {records:?}"));
        assert_eq!(record.text("/kernel/hook"), "output", "{record}");
        assert_eq!(record.text("/source/kind"), "node", "{record}");
        assert_eq!(record.pod("destination"), "lab/server");
        assert_ne!(record.cause(), "policy", "{record}");
    }
    Ok(())
}

/// From a pod to its node, dropped in INPUT: no policy isolates a node.
#[test]
fn input() -> Result<()> {
    const RULES: &str = "
table inet host {
	chain input {
		type filter hook input priority filter; policy accept;
		udp dport 8472 counter drop comment \"in\"
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(RULES)?;
    let agent = pair.watch()?;
    traffic::udp(&pair.client()?.netns, CLIENT.into(), [(NODE, 8472).into()], 32)?;
    let records = pair.stop_and_compare(agent, "in")?;
    let [record] = records.as_slice() else { panic!("{} records of one packet: {records:?}", records.len()) };
    assert_eq!(record.text("/kernel/hook"), "input", "{record}");
    assert_eq!(record.pod("source"), "lab/client");
    assert_eq!((record.text("/destination/kind"), record.text("/destination/node")), ("node", "node-a"), "{record}");
    assert_ne!(record.cause(), "policy", "{record}");
    Ok(())
}

/// POSTROUTING, where kindnet's agent drops: the record names both pods.
#[test]
fn postrouting() -> Result<()> {
    const RULES: &str = "
table inet network-policy {
	counter denied { }
	chain postrouting {
		type filter hook postrouting priority 95; policy accept;
		ip daddr 10.244.1.3 counter name denied drop
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(RULES)?;
    let agent = pair.watch()?;
    traffic::udp(&pair.client()?.netns, CLIENT.into(), [(SERVER, 53).into()], 32)?;
    let records = pair.stop_and_compare(agent, "denied")?;
    let [record] = records.as_slice() else { panic!("{} records of one packet: {records:?}", records.len()) };
    assert_eq!((record.cause(), record.text("/direction")), ("policy", "ingress"), "{record}");
    assert_eq!(record.isolated_by("ingress"), ["lab/deny-server"]);
    Ok(())
}

/// REJECT drops the packet and answers the client. The answer is not a drop.
#[test]
fn reject() -> Result<()> {
    const RULES: &str = "
table inet network-policy {
	counter rejected { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		meta l4proto tcp tcp dport 81 counter name rejected reject with tcp reset
		ip daddr 10.244.1.3 counter name rejected reject with icmp type admin-prohibited
		ip6 daddr fd00:10:244:1::3 counter name rejected reject with icmpv6 type no-route
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(RULES)?;
    let agent = pair.watch()?;
    let client = pair.client()?;
    let cases: [(SocketAddr, Outcome); 4] = [
        ((SERVER, 80).into(), Outcome::Unreachable),
        ((SERVER, 81).into(), Outcome::Refused),
        ((SERVER6, 80).into(), Outcome::Unreachable),
        ((SERVER6, 81).into(), Outcome::Refused),
    ];
    for (to, outcome) in &cases {
        let from = client.ip_like(to.ip());
        let attempt = traffic::tcp(&client.netns, from, *to, netpol_trace_tests::PATIENCE, TcpOptions::default())?;
        assert_eq!(attempt.outcome, *outcome, "{to}");
    }
    let records = pair.stop_and_compare(agent, "rejected")?;
    for (to, _) in &cases {
        let found = records.iter().find(|record| record.address("destination") == Some(*to));
        let record = found.unwrap_or_else(|| panic!("no record for {to}: {records:?}"));
        // If an ICMP error arrives while connect holds the socket, some clients send a second SYN.
        assert_eq!(record.cause(), "policy", "{record}");
        // If the kernel does not distinguish it from DROP, the action is `unknown`.
        assert_ne!(record.text("/action"), "drop", "{record}");
    }
    Ok(())
}
