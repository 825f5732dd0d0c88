//! A sink that does not get rid of its records holds up nobody, and says in the end what it lost.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::thread;

use anyhow::Result;
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::{Record, packets};
use netpol_trace_tests::{skip, traffic};
use nix::sys::stat::Mode;

/// More records than a sink's queue has room for.
const FLOOD: usize = 30_000;

#[test]
fn a_slow_sink_holds_up_nobody() -> Result<()> {
    if skip("a_slow_sink_holds_up_nobody") {
        return Ok(());
    }
    let pair = Pair::start(DENY)?;
    let folder = tempfile::tempdir()?;
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU)?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let target = pipe.to_string_lossy().into_owned();
    // A record for each packet, and a larger ring that takes the whole flood: what is lost here is lost by the sink.
    let each = ["--fold-window", "0s", "--max-records-per-second", "0", "--ring-kib", "32768"];
    let outputs = ["--output", "stdout", "--output", &target, "--manifests", &manifests];
    let agent = Agent::start(&[&each[..], &outputs].concat())?;
    for _ in 0..10 {
        // In parts that the reader keeps up with: what is asked here is what becomes of records that were made.
        let before = agent.records().len();
        let to = std::iter::repeat_n((SERVER, 5000).into(), FLOOD / 10);
        traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 64)?;
        agent.wait_for("a part of the flood", |records| records.len() >= before + FLOOD / 10)?;
    }
    // Nobody has read the pipe so far, and stdout has it all. Now somebody reads.
    let reader = thread::spawn(move || -> Result<Vec<Record>> {
        BufReader::new(File::open(pipe)?).lines().map(|line| Record::parse(&line?)).collect()
    });
    let run = agent.stop()?;
    run.balance()?;
    run.account_for("denied", pair.counted("denied")?, &pair.netfilter_drops(&run))?;
    let piped = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    for (expected, record) in (1..).zip(&piped) {
        assert_eq!(record.number("/seq"), Some(expected), "{record}");
    }
    let declared: Vec<&Record> = piped.iter().filter(|record| record.text("/stage") == "sink").collect();
    let lost: u64 = declared.iter().filter_map(|record| record.number("/count")).sum();
    assert!(lost > 0, "the pipe held {FLOOD} records");
    assert!(declared.iter().all(|record| record.text("/sink") == target && record.text("/reason") == "queue_full"));
    // Of what the ledger has, the pipe has every packet or its declaration, and the ids say where.
    assert_eq!(packets(&piped) + lost, packets(&run.records));
    for loss in declared {
        let position = |id: &str| run.records.iter().position(|record| record.text("/id") == loss.text(id));
        let (first, last) = (position("/first_id"), position("/last_id"));
        assert!(first.is_some() && first <= last, "{loss}");
        let within = run.records.get(first.unwrap_or(0)..=last.unwrap_or(0)).unwrap_or_default();
        assert_eq!(Some(packets(within)), loss.number("/count"), "{loss}");
    }
    let stopped = run.stopped()?;
    let of_pipe = stopped.list("/sinks").get(1);
    assert_eq!(of_pipe.and_then(|sink| sink["lost"].as_u64()), Some(lost), "{stopped}");
    Ok(())
}
