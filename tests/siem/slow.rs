//! A slow sink does not delay other sinks, and declares its losses at the end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::agent::{self, Run};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::{Record, packets};
use netpol_trace_tests::{can_run_lab, eventually, require, traffic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// More records than a sink's queue has room for.
const FLOOD: usize = 30_000;

/// Counts the lines that come into a file.
struct Counter {
    file: File,
    lines: usize,
}

impl Counter {
    fn wait_for(&mut self, lines: usize) -> Result<()> {
        eventually("lines in the file", || {
            let mut more = Vec::new();
            self.file.read_to_end(&mut more)?;
            self.lines += more.iter().filter(|byte| **byte == b'\n').count();
            Ok((self.lines >= lines).then_some(()))
        })
    }
}

#[test]
fn a_slow_sink_holds_up_nobody() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let mut command = Command::new(agent::binary()?);
    // One record per packet, and a ring for the whole flood, so that only the sink loses records.
    command.args([
        "agent",
        "--aggregation-window",
        "0s",
        "--max-records-per-second",
        "0",
        "--ring-kib",
        "32768",
        "--output",
    ]);
    command.arg(&log).args(["--output", "stdout", "--manifests"]).arg(pair.manifests());
    // Its stdout is not read yet.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let file = eventually("the file", || Ok(File::open(&log).ok()))?;
    let mut counter = Counter { file, lines: 0 };
    // Its status `started`.
    counter.wait_for(1)?;
    for _ in 0..10 {
        // In parts that the agent's reader keeps up with.
        let before = counter.lines;
        let to = std::iter::repeat_n((SERVER, 5000).into(), FLOOD / 10);
        traffic::udp(&pair.client()?.netns, CLIENT.into(), to, 64)?;
        counter.wait_for(before + FLOOD / 10)?;
    }
    // The file has all records. Now read the pipe.
    let pipe = child.stdout.take().context("its stdout")?;
    let reader = thread::spawn(move || -> Result<Vec<Record>> {
        BufReader::new(pipe).lines().map(|line| Record::parse(&line?)).collect()
    });
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    let records: Result<Vec<Record>> = fs::read_to_string(&log)?.lines().map(Record::parse).collect();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let run = Run { records: records?, stderr, exit: output.status };
    run.balance()?;
    run.account_for("denied", pair.counted("denied")?, &pair.netfilter_drops(&run))?;
    let piped = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    for (expected, record) in (1..).zip(&piped) {
        assert_eq!(record.number("/seq"), Some(expected), "{record}");
    }
    let declared: Vec<&Record> = piped.iter().filter(|record| record.text("/stage") == "sink").collect();
    let lost: u64 = declared.iter().filter_map(|record| record.number("/count")).sum();
    ensure!(lost > 0, "the pipe held {FLOOD} records");
    assert!(declared.iter().all(|record| record.text("/sink") == "stdout" && record.text("/reason") == "queue_full"));
    // The pipe has every packet of the file or a declaration of its loss, and the ids show where.
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
