//! Packet accounting under load. Other tests of the lab check it too (`Pair::stop_and_compare`).

use std::net::SocketAddr;
use std::process::Command;
use std::thread;

use anyhow::Result;
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::pair::{CLIENT, CLIENT6, DENY, NODE, Pair, SERVER, SERVER6};
use netpol_trace_tests::record::{Record, drops, packets};
use netpol_trace_tests::{can_run_lab, eventually, nft, require, traffic};
use nix::sys::signal::Signal;

/// Many packets for this machine. An emulated one, with a single slow processor, needs a minute for what others do in a second.
fn many() -> usize {
    if thread::available_parallelism().is_ok_and(|processors| processors.get() == 1) { 1800 } else { 18_000 }
}

/// One flow, many packets: every packet is counted.
#[test]
fn one_flow_many_packets() -> Result<()> {
    require!(can_run_lab());
    let packets = many();
    let pair = Pair::start(DENY)?;
    let agent = pair.watch()?;
    let to = std::iter::repeat_n(SocketAddr::from((SERVER, 5000)), packets);
    traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 100)?;
    pair.stop_and_compare(agent, "denied")?;
    assert_eq!(pair.counted("denied")?, packets as u64, "nft counts what was sent");
    Ok(())
}

/// Many flows, few packets each, of both families at once.
#[test]
fn many_flows() -> Result<()> {
    require!(can_run_lab());
    let _alone = crate::alone();
    let ports = many() / 6;
    let pair = Pair::start(DENY)?;
    let agent = pair.watch()?;
    let client = &pair.client()?.netns;
    let send = |from: std::net::IpAddr, to: std::net::IpAddr| {
        let thrice = (0..3).flat_map(|_| (10_000..).take(ports));
        traffic::udp(client, from, thrice.map(move |port: u16| (to, port).into()), 64)
    };
    thread::scope(|scope| -> Result<()> {
        let other = scope.spawn(|| send(CLIENT6.into(), SERVER6.into()));
        send(CLIENT.into(), SERVER.into())?;
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(())
    })?;
    let records = pair.stop_and_compare(agent, "denied")?;
    assert_eq!(pair.counted("denied")?, (2 * 3 * ports) as u64, "nft counts what was sent");
    assert!(records.iter().all(|record| record.cause() == "policy"), "every one is the policy's");
    Ok(())
}

/// Drops of the node's own packets (process context) are interrupted by drops of forwarded ones (softirq): the agent declares the runs
/// that BPF's recursion protection skips.
#[test]
fn output_under_forwarded_load() -> Result<()> {
    const OUTPUT: &str = "
table inet host {
	counter out { }
	chain output {
		type filter hook output priority filter; policy accept;
		ip daddr 10.244.1.3 counter name out drop
	}
}";
    require!(can_run_lab());
    let pair = Pair::start(&[DENY, OUTPUT].concat())?;
    let agent = pair.watch()?;
    let client = &pair.client()?.netns;
    thread::scope(|scope| -> Result<()> {
        let node = pair.lab.node();
        let own = scope.spawn(move || {
            for _ in 0..many() / 10 {
                // EPERM: the rule has dropped it.
                let _ = traffic::udp(node, NODE.into(), [(SERVER, 5001).into()], 64);
            }
        });
        traffic::udp(client, CLIENT.into(), std::iter::repeat_n((SERVER, 5000).into(), many()), 64)?;
        own.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(())
    })?;
    let run = agent.stop()?;
    run.balance()?;
    let counted: u64 = nft::counters(pair.lab.node())?.values().sum();
    run.account_for("denied and out", counted, &pair.netfilter_drops(&run))
}

/// Two labs with the same addresses: their drops stay apart, and one agent accounts for both.
#[test]
fn two_nodes_with_the_same_addresses() -> Result<()> {
    require!(can_run_lab());
    let (one, two) = (Pair::start(DENY)?, Pair::start(DENY)?);
    let agent = one.watch()?;
    for (pair, packets) in [(&one, 5), (&two, 7)] {
        let to = std::iter::repeat_n(SocketAddr::from((SERVER, 5000)), packets);
        traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 64)?;
    }
    let run = agent.stop()?;
    run.balance()?;
    for (pair, sent) in [(&one, 5), (&two, 7)] {
        let own = drops(&run.records).filter(|record| pair.lab.owns(record));
        assert_eq!((pair.counted("denied")?, packets(own)), (sent, sent));
    }
    Ok(())
}

/// A stopped agent: events that the ring has no room for are counted and declared.
#[test]
fn a_full_ring_is_declared() -> Result<()> {
    const PORTS: u16 = 10_000;
    require!(can_run_lab());
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let agent = Agent::start(&["--ring-kib", "64", "--manifests", &manifests])?;
    agent.signal(Signal::SIGSTOP)?;
    let to = (10_000..10_000 + PORTS).map(|port| (SERVER, port).into());
    traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 64)?;
    agent.signal(Signal::SIGCONT)?;
    let run = agent.stop()?;
    run.balance()?;
    assert!(run.lost()? > 0, "64 KiB held {PORTS} events");
    assert!(run.records.iter().any(|record| record.kind() == "loss"), "loss without a record of it");
    run.account_for("denied", pair.counted("denied")?, &pair.netfilter_drops(&run))
}

/// A small file system, in a folder of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u32) -> Result<SmallDisk> {
        let folder = tempfile::tempdir()?;
        let size = format!("size={bytes}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output()?;
        anyhow::ensure!(mount.status.success(), "mount: {}", String::from_utf8_lossy(&mount.stderr));
        Ok(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A disk that fills up and is cleared: the log declares what is missing, and the accounting is correct.
#[test]
fn a_full_disk_is_declared() -> Result<()> {
    const PACKETS: usize = 2000;
    require!(can_run_lab());
    // Losses of other tests' floods would have loss records too, some of which would be lost here.
    let _alone = crate::alone();
    let pair = Pair::start(DENY)?;
    let disk = SmallDisk::mount(8 << 20)?;
    let (filler, log) = (disk.0.path().join("filler"), disk.0.path().join("drops.jsonl"));
    // Room for some records, not for all of them.
    std::fs::write(&filler, vec![0; 7 << 20])?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let log_path = log.to_string_lossy().into_owned();
    let each = ["--aggregation-window", "0s", "--max-records-per-second", "0", "--manifests", &manifests];
    let agent = Agent::start(&[&each[..], &["--output", "stdout", "--output", &log_path]].concat())?;
    let to = std::iter::repeat_n(SocketAddr::from((SERVER, 5000)), PACKETS);
    traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 64)?;
    agent.wait_for("every packet on stdout", |records| {
        packets(drops(records).filter(|record| pair.lab.owns(record))) == PACKETS as u64
    })?;
    // The file's sink used the space: less than a batch of lines is left.
    let mut size = 0;
    eventually("the disk to be full", || {
        let now = std::fs::metadata(&log)?.len();
        let stands_still = now == std::mem::replace(&mut size, now);
        Ok((stands_still && now > 700 << 10).then_some(()))
    })?;
    std::fs::remove_file(&filler)?;
    let mut run = agent.stop()?;
    run.balance()?;
    let text = std::fs::read_to_string(&log)?;
    let records: Result<Vec<Record>> = text.lines().map(Record::parse).collect();
    let stdout = std::mem::replace(&mut run.records, records?);
    let lost: u64 = run
        .records
        .iter()
        .filter(|record| record.kind() == "loss" && record.text("/reason") == "write_failed")
        .filter_map(|record| record.number("/count"))
        .sum();
    assert!(lost > 0, "one MiB held {PACKETS} records");
    assert_eq!(packets(&run.records) + lost, packets(&stdout), "in the file or declared");
    let answer = run.verify_log()?;
    assert!(answer.status.success(), "verify-log: {}", String::from_utf8_lossy(&answer.stdout));
    Ok(())
}
