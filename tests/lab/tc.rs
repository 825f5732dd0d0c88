//! The tc hook: what pods' interfaces add to a drop, and unanswered connections.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_trace_tests::pair::{CLIENT, CLIENT6, DENY, DENY_STATELESS, OUTSIDE, Pair, SERVER, SERVER6};
use netpol_trace_tests::record::{Record, drops};
use netpol_trace_tests::server::Server;
use netpol_trace_tests::traffic::{self, Outcome, TcpOptions};
use netpol_trace_tests::{PATIENCE, can_run_lab, eventually, packet, require};

/// Both hooks, wherever they run.
pub const BOTH: [&str; 3] = ["--all-drops", "--hooks", "kfree_skb,tc"];
/// Shorter than TCP's first retransmission: one SYN.
const ONE_SYN: Duration = Duration::from_millis(300);

/// A pod got the address from DNS: the drop's record has the name.
#[test]
fn names_come_from_the_pods_own_dns_answers() -> Result<()> {
    require!(can_run_lab());
    let mut pair = Pair::start(DENY)?;
    let dns = pair.add_outside()?;
    let names = [("db.example.org", SERVER)];
    let _server = Server::dns(&pair.lab.host("outside")?.netns, dns, &names)?;
    let agent = pair.watch_node(&BOTH)?;
    let client = &pair.client()?.netns;
    let asked = traffic::dns(client, CLIENT.into(), dns, "db.example.org", PATIENCE)?;
    assert_eq!(asked.outcome, Outcome::Passed);
    // Case and a name that does not exist change nothing.
    traffic::dns(client, CLIENT.into(), dns, "nowhere.example.org", PATIENCE)?;
    traffic::tcp(client, CLIENT.into(), (SERVER, 80).into(), ONE_SYN, TcpOptions::default())?;
    let records = pair.stop_and_compare(agent, "denied")?;
    let named: Vec<&Record> = drops(&records).filter(|record| record.number("/destination/port") == Some(80)).collect();
    let first = named.first().with_context(|| format!("no drop at port 80: {records:?}"))?;
    assert_eq!(first.list("/destination/names"), ["db.example.org"], "{first}");
    Ok(())
}

/// A service's address is translated without conntrack, as eBPF load balancers do: the tc hook on the client's interface sees the service's
/// address.
#[test]
fn the_address_that_was_asked_for_is_known_without_conntrack() -> Result<()> {
    const TRANSLATE: &str = "
table inet translate {
	chain prerouting {
		type filter hook prerouting priority raw;
		ip daddr 10.96.0.50 ip daddr set 10.244.1.3 notrack
		ip6 daddr fd00:10:96::50 ip6 daddr set fd00:10:244:1::3 notrack
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(&[TRANSLATE, DENY_STATELESS].concat())?;
    pair.add("service.yaml", &crate::rows::services::service(true))?;
    let agent = pair.watch_node(&BOTH)?;
    let client = &pair.client()?.netns;
    for (from, asked, server) in [
        (CLIENT.into(), SocketAddr::new(crate::rows::services::CLUSTER_IP.parse()?, 9), IpAddr::from(SERVER)),
        (CLIENT6.into(), SocketAddr::new(crate::rows::services::CLUSTER_IP6.parse()?, 9), SERVER6.into()),
    ] {
        traffic::udp(client, from, [asked], 32)?;
        let ip = asked.ip().to_string();
        agent.wait_for("the drop behind the service", |records| {
            drops(records).any(|record| {
                pair.lab.owns(record)
                    && record.text("/destination/original/ip") == ip
                    && record.number("/destination/original/port") == Some(9)
                    && record.address("destination") == Some(SocketAddr::new(server, 9))
                    && record.service("destination") == "lab/svc"
            })
        })?;
    }
    let records = pair.stop_and_compare(agent, "denied")?;
    assert_eq!(records.len(), 2, "{records:?}");
    Ok(())
}

/// A connection without an answer and without a drop on this node has one record for all tries to one port. Connections that were
/// answered, refused or dropped have none.
#[test]
fn an_unanswered_connection_is_reported() -> Result<()> {
    require!(can_run_lab());
    let mut pair = Pair::start("table inet t {\n}")?;
    let outside = pair.add_outside()?;
    let far = pair.lab.host("outside")?;
    // The remote host's own firewall drops. In reality that is another machine; the lab's are all on this one.
    let _open = Server::tcp(&far.netns, SocketAddr::new(outside.ip(), 8080))?;
    blackhole(&pair, 9999)?;
    let agent = pair.watch_node(&["--hooks", "tc"])?;
    let client = &pair.client()?.netns;
    let to = |port| SocketAddr::new(outside.ip(), port);
    for _ in 0..3 {
        traffic::tcp(client, CLIENT.into(), to(9999), ONE_SYN, TcpOptions::default())?;
    }
    let passed = traffic::tcp(client, CLIENT.into(), to(8080), PATIENCE, TcpOptions::default())?;
    assert_eq!(passed.outcome, Outcome::Passed);
    let refused = traffic::tcp(client, CLIENT.into(), to(8081), PATIENCE, TcpOptions::default())?;
    assert_eq!(refused.outcome, Outcome::Refused);
    agent.wait_for("an unanswered connection", |records| records.iter().any(|r| r.kind() == "unanswered"))?;
    let run = agent.stop()?;
    let unanswered: Vec<&Record> = run.records.iter().filter(|record| record.kind() == "unanswered").collect();
    assert!(unanswered.iter().all(|record| record.number("/destination/port") == Some(9999)), "{unanswered:?}");
    let first = unanswered.first().context("one")?;
    assert_eq!(first.pod("source"), "lab/client", "{first}");
    assert_eq!(first.text("/destination/kind"), "external", "{first}");
    assert_eq!(first.text("/verdict/result"), "allowed", "{first}");
    assert_eq!(first.text("/basis"), "no_answer_seen", "{first}");
    assert_eq!(first.text("/direction"), "egress", "{first}");
    assert_eq!(first.text("/device"), pair.client()?.device, "{first}");
    assert_eq!(unanswered.len(), 1, "one record for one port: {unanswered:?}");
    let stopped = run.stopped()?;
    assert_eq!(stopped.number("/connections/lost"), Some(0), "{stopped}");
    // Three unanswered tries, one that passed, one that was refused.
    assert!(stopped.number("/connections/opened") >= Some(5), "{stopped}");
    Ok(())
}

/// A CPU that sees a connection's packets all the time updates the map of connections once per tick: only the last packets are missing in
/// the count, and answers are seen.
#[test]
fn unanswered_connections_at_a_high_rate_are_counted() -> Result<()> {
    require!(can_run_lab());
    const BURSTS: u64 = 20;
    const BURST: u64 = 100;
    let mut pair = Pair::start("table inet t {\n}")?;
    let outside = pair.add_outside()?;
    let _answers =
        Server::udp_answers(&pair.lab.host("outside")?.netns, SocketAddr::new(outside.ip(), 5000), vec![vec![0]])?;
    blackhole(&pair, 9999)?;
    let agent = pair.watch_node(&["--hooks", "tc"])?;
    let send = |port| {
        let to = SocketAddr::new(outside.ip(), port);
        let paced = (0..BURSTS * BURST).map(|at| {
            if at % BURST == 0 {
                // The pace of the load: each burst in a tick of its own.
                std::thread::sleep(Duration::from_millis(10));
            }
            to
        });
        traffic::udp(&pair.client()?.netns, CLIENT.into(), paced, 32)
    };
    // The agent must watch an interface for a while before it can distinguish a first UDP packet from a late answer.
    eventually("an unanswered connection", || {
        send(5000)?;
        send(9999)?;
        Ok(agent.records().iter().any(|record| record.kind() == "unanswered").then_some(()))
    })?;
    let run = agent.stop()?;
    let unanswered: Vec<&Record> = run.records.iter().filter(|record| record.kind() == "unanswered").collect();
    assert!(unanswered.iter().all(|record| record.number("/destination/port") == Some(9999)), "{unanswered:?}");
    let packets = unanswered[0].number("/packets").context("a number of packets")?;
    assert!((BURSTS * BURST * 3 / 4..=BURSTS * BURST).contains(&packets), "{}", unanswered[0]);
    Ok(())
}

/// A connection that was dropped on this node is not `unanswered`.
#[test]
fn a_dropped_connection_is_not_called_unanswered() -> Result<()> {
    require!(can_run_lab());
    let mut pair = Pair::start(DENY)?;
    let outside = pair.add_outside()?;
    blackhole(&pair, 9999)?;
    let agent = pair.watch_node(&BOTH)?;
    let client = &pair.client()?.netns;
    for (from, to) in [(CLIENT.into(), SERVER.into()), (CLIENT6.into(), SERVER6.into())] {
        let (from, to): (IpAddr, IpAddr) = (from, to);
        traffic::tcp(client, from, (to, 80).into(), ONE_SYN, TcpOptions::default())?;
        traffic::udp(client, from, [(to, 5000).into()], 32)?;
    }
    // So is one that was dropped in another network namespace of this machine.
    traffic::tcp(client, CLIENT.into(), SocketAddr::new(outside.ip(), 9999), ONE_SYN, TcpOptions::default())?;
    // No record is expected, so wait for more than the grace time.
    std::thread::sleep(Duration::from_millis(6500));
    let run = agent.stop()?;
    run.balance()?;
    let unanswered: Vec<&Record> = run.records.iter().filter(|record| record.kind() == "unanswered").collect();
    assert!(unanswered.is_empty(), "{unanswered:?}");
    assert!(drops(&run.records).filter(|r| pair.lab.owns(r)).count() >= 4, "{:?}", run.records);
    Ok(())
}

/// Without the tc hook there are no names and no connections.
#[test]
fn each_hook_works_alone() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    for (hooks, expected) in
        [("kfree_skb", vec!["kfree_skb"]), ("tc", vec!["tc"]), ("kfree_skb,tc", vec!["kfree_skb", "tc"])]
    {
        let agent = pair.watch_node(&["--hooks", hooks])?;
        let client = &pair.client()?.netns;
        traffic::tcp(client, CLIENT.into(), (SERVER, 80).into(), ONE_SYN, TcpOptions::default())?;
        let run = agent.stop()?;
        run.balance()?;
        let stopped = run.stopped()?;
        // The status has the inventory of rulesets among the hooks, whichever of them run. `reject` comes with kfree_skb.
        let hooks_told = stopped.list("/hooks").iter().filter_map(|hook| hook["name"].as_str());
        let names: Vec<&str> = hooks_told.filter(|name| !["rulesets", "reject"].contains(name)).collect();
        assert_eq!(names, expected, "{stopped}");
        let dropped = drops(&run.records).filter(|record| pair.lab.owns(record)).count();
        assert_eq!(dropped > 0, hooks.contains("kfree_skb"), "{hooks}: {:?}", run.records);
        assert_eq!(stopped.number("/connections/opened").is_some(), hooks.contains("tc"), "{stopped}");
        if hooks.contains("tc") {
            let detail = stopped.list("/hooks").last().and_then(|hook| hook["detail"].as_str()).unwrap_or_default();
            assert!(detail.starts_with("2 pod interfaces"), "{stopped}");
        }
    }
    Ok(())
}

/// A pod sends with another's address: only the record of that packet is marked.
#[test]
fn a_spoofed_source_is_marked() -> Result<()> {
    require!(can_run_lab());
    let mut pair = Pair::start(DENY)?;
    pair.add_outside()?;
    for device in ["all", &pair.client()?.device] {
        pair.lab.node().sysctl(&format!("ipv4/conf/{device}/rp_filter"), "0")?;
    }
    let client = &pair.client()?.netns;
    // Another pod's address, an address without an owner, and one that the pod has but its object lacks.
    let server_as_source: IpAddr = OUTSIDE.into();
    let unknown: IpAddr = [10, 244, 1, 77].into();
    let second: IpAddr = [10, 244, 1, 9].into();
    client.ip(&format!("addr add {second}/32 dev eth0\n"))?;
    let agent = pair.watch_node(&BOTH)?;
    for (port, from) in [(1001u16, CLIENT.into()), (1002, unknown), (1003, server_as_source), (1004, second)] {
        let datagram = packet::ipv4_udp(from, (SERVER, port).into(), b"spoof");
        traffic::whole(client, SERVER.into(), &datagram)?;
    }
    let records = pair.stop_and_compare(agent, "denied")?;
    let spoofed: Vec<(u64, bool)> =
        drops(&records).map(|r| (r.number("/destination/port").unwrap_or(0), r.value()["spoofed"] == true)).collect();
    let mut sorted = spoofed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [(1001, false), (1002, true), (1003, true), (1004, false)], "{records:?}");
    Ok(())
}

/// A rule that rejects answers in the server's place, right before the packet is freed: the action is `reject`, not `drop`.
#[test]
fn a_reject_is_distinguished_from_a_drop() -> Result<()> {
    const REJECT: &str = "
table inet network-policy {
	counter denied { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		ip daddr 10.244.1.3 tcp dport 80 counter name denied reject with tcp reset
		ip6 daddr fd00:10:244:1::3 tcp dport 80 counter name denied reject
		ip daddr 10.244.1.3 udp dport 80 counter name denied reject
		ip daddr 10.244.1.3 counter name denied drop
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(REJECT)?;
    let agent = pair.watch_node(&BOTH)?;
    let client = &pair.client()?.netns;
    traffic::tcp(client, CLIENT.into(), (SERVER, 80).into(), ONE_SYN, TcpOptions::default())?;
    traffic::tcp(client, CLIENT6.into(), (SERVER6, 80).into(), ONE_SYN, TcpOptions::default())?;
    traffic::udp(client, CLIENT.into(), [(SERVER, 80).into()], 32)?;
    traffic::tcp(client, CLIENT.into(), (SERVER, 81).into(), ONE_SYN, TcpOptions::default())?;
    // `drop` is certain only if the kernel shows every answer.
    let shown = agent
        .records()
        .iter()
        .flat_map(|record| record.list("/hooks").to_vec())
        .any(|hook| hook["name"] == "reject" && hook["state"] == "fentry");
    let dropped = if shown { "drop" } else { "unknown" };
    let records = pair.stop_and_compare(agent, "denied")?;
    for record in drops(&records) {
        let expected = if record.number("/destination/port") == Some(80) { "reject" } else { dropped };
        assert_eq!(record.text("/action"), expected, "{record}");
    }
    assert_eq!(drops(&records).count(), 4, "{records:?}");
    Ok(())
}

/// Drops packets to `port` of the host outside before they arrive.
fn blackhole(pair: &Pair, port: u16) -> Result<()> {
    let far = &pair.lab.host("outside")?.netns;
    let rules = format!(
        "table inet t {{\n chain in {{\n type filter hook input priority filter; policy accept;\n meta l4proto {{ tcp, udp }} th dport {port} drop\n }}\n}}\n"
    );
    netpol_trace_tests::nft::load(far, &rules)
}
