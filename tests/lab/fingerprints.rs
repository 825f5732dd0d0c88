//! Two agents on one kernel, as in a rolling upgrade: their records of the same packet have the same fingerprint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use netpol_trace_tests::agent::{Agent, Run};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{can_run_lab, require, traffic};

/// Ports of the datagrams, one each.
const PORTS: std::ops::Range<u16> = 6000..6010;
/// The port of a connection attempt: a SYN, and a second later its retransmission.
const TRIED: u16 = 6100;

/// Returns the port that one of this test's packets went to. With `--all-drops` an agent records others of the lab too, such as ICMPv6.
fn port(pair: &Pair, record: &Record) -> Option<u16> {
    let port = u16::try_from(record.number("/destination/port")?).ok()?;
    (pair.lab.owns(record) && (PORTS.contains(&port) || port == TRIED)).then_some(port)
}

/// SYNs of the connection that are compared: the first one and its retransmission. How many more there are is the kernel's choice.
const SYNS: usize = 2;

/// Fingerprints of this test's drops, by the port that they went to, in the order of the run.
fn prints(pair: &Pair, run: &Run) -> BTreeMap<u16, Vec<String>> {
    let mut prints: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for record in &run.records {
        if let Some(port) = port(pair, record) {
            let of_port = prints.entry(port).or_default();
            if of_port.len() < SYNS {
                of_port.push(record.text("/fingerprint").to_owned());
            }
        }
    }
    prints
}

#[test]
fn two_agents_records_of_a_packet_have_one_fingerprint() -> Result<()> {
    require!(can_run_lab());
    // A full map of flows would make the keys coarser, in one agent earlier than in the other.
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let manifests = pair.manifests().to_string_lossy();
    // One record per packet, so that the SYNs can be compared one by one.
    let common = ["--manifests", &manifests, "--aggregation-window", "0s", "--hooks", "kfree_skb"];
    let old = Agent::start(&common)?;
    // The second agent differs as another version would: it counts packets, records more causes, has no labels and another node name.
    let new = Agent::start(&[&common[..], &["--all-drops", "--node-name", "other"]].concat())?;
    let client = pair.client()?;
    traffic::udp(&client.netns, CLIENT.into(), PORTS.map(|port| (SERVER, port).into()), 64)?;
    let patience = Duration::from_millis(2500);
    traffic::tcp(&client.netns, CLIENT.into(), (SERVER, TRIED).into(), patience, traffic::TcpOptions::default())?;
    let all = PORTS.len() + SYNS;
    for agent in [&old, &new] {
        agent.wait_for("every packet", |records| {
            records.iter().filter(|record| port(&pair, record).is_some()).count() >= all
        })?;
    }
    let (old, new) = (old.stop()?, new.stop()?);
    let (of_old, of_new) = (prints(&pair, &old), prints(&pair, &new));
    assert_eq!(of_old, of_new);
    let different: BTreeSet<&String> = of_old.values().flatten().collect();
    assert_eq!(different.len(), of_old.values().flatten().count(), "every packet has its own: {of_old:#?}");
    assert!(of_old[&TRIED].len() == SYNS, "a SYN and its retransmission: {of_old:#?}");

    // Their other ids differ.
    let own = |run: &Run| -> BTreeSet<String> {
        let others = run.records.iter().filter(|record| !record.is_drop());
        others.map(|record| record.text("/fingerprint").to_owned()).collect()
    };
    assert!(own(&old).is_disjoint(&own(&new)) && !own(&old).contains(""), "{:?}", own(&old));
    let run = |run: &Run| run.records[0].text("/run").to_owned();
    assert_ne!(run(&old), run(&new));
    assert_eq!(run(&old).len(), 16, "64 bits: {}", run(&old));
    Ok(())
}
