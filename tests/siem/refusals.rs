//! A receiver of OTLP refuses some records: the agent counts them and declares them to the receiver.

use anyhow::{Context, Result};
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::{can_run_lab, eventually, require, traffic};

use netpol_trace_tests::collector::Collector;

/// ExportLogsServiceResponse { partial_success { rejected_log_records: 1 } }
const ONE_REJECTED: &[u8] = &[0x0a, 0x02, 0x08, 0x01];

#[test]
fn what_a_receiver_refuses_is_declared() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    // The receiver refuses the request with the status `started`, and one record of the next request.
    let collector = Collector::start(&[("400 Bad Request", "", b""), ("200 OK", "", ONE_REJECTED)])?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let token = tempfile::NamedTempFile::new()?;
    std::fs::write(token.path(), "s3cret\n")?;
    let target = format!("otlp:http://{},token-file={}", collector.address, token.path().display());
    let agent = Agent::start(&["--output", "stdout", "--output", &target, "--manifests", &manifests])?;
    traffic::udp(&pair.client()?.netns, CLIENT.into(), (5000..5005).map(|port| (SERVER, port).into()), 64)?;
    let sent = |text: &'static str| {
        eventually(text, || {
            let (taken, _) = collector.taken();
            let has = |body: &Vec<u8>| body.windows(text.len()).any(|window| window == text.as_bytes());
            Ok(taken.iter().any(has).then_some(()))
        })
    };
    sent("lost at a sink: refused")?;
    sent("lost at a sink: rejected")?;
    let run = agent.stop()?;
    run.balance()?;
    let stopped = run.stopped()?;
    let sink = stopped.list("/sinks").get(1).context("two sinks")?;
    assert_eq!(sink["records_lost"], 2, "{stopped}");
    assert_eq!(sink["error"], serde_json::Value::Null, "{stopped}");
    assert!(!run.records.iter().any(|record| record.kind() == "loss"), "stdout lost nothing");
    let (_, heads) = collector.taken();
    let has_token = |head: &String| head.to_ascii_lowercase().contains("\r\nauthorization: bearer s3cret\r\n");
    assert!(heads.iter().all(has_token), "{heads:?}");
    Ok(())
}
