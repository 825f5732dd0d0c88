//! Every kind of packet that a policy can drop.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use netpol_trace_tests::pair::{CLIENT, CLIENT6, DENY, DENY_STATELESS, Pair, SERVER, SERVER6};
use netpol_trace_tests::record::{Record, packets};
use netpol_trace_tests::server::Server;
use netpol_trace_tests::traffic::{self, TcpOptions};
use netpol_trace_tests::{can_run_lab, packet, require};
use socket2::{Protocol, SockRef};

/// Shorter than TCP's first retransmission: one SYN.
const ONE_SYN: Duration = Duration::from_millis(300);

/// One packet of each transport and family, with and without conntrack.
#[test]
fn transports() -> Result<()> {
    require!(can_run_lab());
    for ruleset in [DENY, DENY_STATELESS] {
        let pair = Pair::start(ruleset)?;
        let agent = pair.watch()?;
        let client = &pair.client()?.netns;
        for (from, to) in [(CLIENT.into(), SERVER.into()), (CLIENT6.into(), SERVER6.into())] {
            let (from, to): (IpAddr, IpAddr) = (from, to);
            traffic::tcp(client, from, (to, 80).into(), ONE_SYN, TcpOptions::default())?;
            traffic::udp(client, from, [(to, 53).into()], 32)?;
            traffic::raw(client, from, to, Protocol::SCTP, &packet::sctp_init(5000, 9999))?;
            let (icmp, kind) = if to.is_ipv4() { (Protocol::ICMPV4, 8) } else { (Protocol::ICMPV6, 128) };
            traffic::raw(client, from, to, icmp, &packet::echo_request(kind, 7, 1))?;
        }
        let records = pair.stop_and_compare(agent, "denied")?;
        for (family, transport, port) in [
            ("ipv4", "tcp", Some(80)),
            ("ipv4", "udp", Some(53)),
            ("ipv4", "sctp", Some(9999)),
            ("ipv4", "icmp", None),
            ("ipv6", "tcp", Some(80)),
            ("ipv6", "udp", Some(53)),
            ("ipv6", "sctp", Some(9999)),
            ("ipv6", "ipv6-icmp", None),
        ] {
            let mine = of(&records, family, transport);
            let [record] = mine.as_slice() else {
                panic!("{family} {transport}: {} records of one packet: {records:?}", mine.len())
            };
            assert_eq!(record.count(), 1, "{record}");
            assert_eq!(record.number("/destination/port"), port, "{record}");
            assert_eq!((record.pod("source"), record.pod("destination")), ("lab/client".into(), "lab/server".into()));
            assert_eq!(record.text("/kernel/hook"), "forward", "{record}");
            // NetworkPolicy does not define ICMP.
            let (result, cause) = if port.is_some() { ("denied", "policy") } else { ("undetermined", "unknown") };
            assert_eq!((record.text("/verdict/result"), record.cause()), (result, cause), "{record}");
        }
    }
    Ok(())
}

/// Without conntrack fragments are not reassembled: each is dropped by itself, and the later ones have no ports.
#[test]
fn fragments_one_by_one() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY_STATELESS)?;
    let agent = pair.watch()?;
    // 1480 bytes of payload fit a fragment of IPv4, 1448 one of IPv6.
    big_datagrams(&pair)?;
    let records = pair.stop_and_compare(agent, "denied")?;
    for family in ["ipv4", "ipv6"] {
        let mine = of(&records, family, "udp");
        assert_eq!(packets(mine.iter().copied()), 3, "{family}: {mine:?}");
        let (later, first): (Vec<&Record>, Vec<&Record>) =
            mine.into_iter().partition(|record| record.value()["network"]["fragment"] == true);
        assert_eq!(packets(later.iter().copied()), 2, "{family}: {later:?}");
        assert!(first.iter().all(|record| record.number("/destination/port") == Some(5000)), "{first:?}");
        assert!(later.iter().all(|record| record.number("/destination/port").is_none()), "{later:?}");
    }
    Ok(())
}

/// Conntrack reassembles fragments before the rule: one packet, one drop.
#[test]
fn fragments_put_together() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let agent = pair.watch()?;
    big_datagrams(&pair)?;
    let records = pair.stop_and_compare(agent, "denied")?;
    for family in ["ipv4", "ipv6"] {
        let mine = of(&records, family, "udp");
        assert_eq!(packets(mine.iter().copied()), 1, "{family}: {mine:?}");
        assert!(mine.iter().all(|record| record.cause() == "policy"), "{mine:?}");
        assert!(mine.iter().all(|record| record.number("/bytes") > Some(4000)), "{mine:?}");
    }
    Ok(())
}

/// Segmentation offload: one packet for nft is several on the wire.
#[test]
fn big_segments() -> Result<()> {
    const RULES: &str = "
table inet network-policy {
	counter big { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip daddr 10.244.1.3 meta length > 1500 counter name big drop
		ct state established accept
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(RULES)?;
    let _server = Server::tcp(&pair.server()?.netns, (SERVER, 80).into())?;
    let agent = pair.watch()?;
    let mut stream = pair.client()?.netns.run(|| TcpStream::connect(SocketAddr::from((SERVER, 80))))?;
    stream.set_nonblocking(true)?;
    // As much as the socket accepts. It leaves in packets of two segments to 64 KiB.
    let written = stream.write(&vec![0; 256 << 10]).context("write")?;
    assert!(written > 3000, "the socket took only {written} bytes");
    // Ends the retransmissions.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    let records = pair.stop_and_compare(agent, "big")?;
    let segments: u64 = records.iter().map(|record| record.number("/segments").unwrap_or(record.count())).sum();
    assert!(pair.counted("big")? > 0, "nothing big was sent");
    assert!(segments > packets(&records), "{segments} segments: {records:?}");
    Ok(())
}

/// 4,000 bytes to port 5000, one datagram of each family: three fragments.
fn big_datagrams(pair: &Pair) -> Result<()> {
    let client = &pair.client()?.netns;
    traffic::udp(client, CLIENT.into(), [(SERVER, 5000).into()], 4000)?;
    traffic::udp(client, CLIENT6.into(), [(SERVER6, 5000).into()], 4000)?;
    Ok(())
}

fn of<'a>(records: &'a [Record], family: &str, transport: &str) -> Vec<&'a Record> {
    let matches =
        |record: &&Record| record.text("/network/family") == family && record.text("/network/transport") == transport;
    records.iter().filter(matches).collect()
}
