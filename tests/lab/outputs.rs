//! Outputs that can't be opened when the agent starts, outputs that don't accept records, and the files that outputs need.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use netpol_trace_tests::agent::{self, Agent, SOON};
use netpol_trace_tests::collector::{Collector, certificates};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::{Record, drops, packets};
use netpol_trace_tests::{can_run_lab, eventually, has_program, require, traffic};
use serde_json::Value;

fn records(text: &str) -> Result<Vec<Record>> {
    text.lines().map(Record::parse).collect()
}

/// The text of all regular files in a folder, in the order of their names.
fn files_of(folder: &Path) -> Result<String> {
    let mut files: Vec<_> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    files.into_iter().map(|file| Ok(fs::read_to_string(file)?)).collect()
}

fn send(pair: &Pair, agent: &Agent, port: u16) -> Result<()> {
    traffic::udp(&pair.client()?.netns, CLIENT.into(), [(SERVER, port).into()], 32)?;
    agent.wait_for("the drop", |records| {
        drops(records).any(|r| pair.lab.owns(r) && r.number("/destination/port") == Some(u64::from(port)))
    })
}

/// A file whose folder is made later, a history whose folder is blocked at first, and an OTLP output whose authorities never come: the
/// first output has every record, the late ones declare the records that they missed, and the records of the third are counted as lost.
#[test]
fn a_secondary_output_that_cannot_start_holds_up_nobody() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name);
    fs::write(place("blocked"), "")?;
    let mut command = Command::new(agent::binary()?);
    command.args(["agent", "--manifests"]).arg(pair.manifests()).args(SOON).args(["--output", "stdout", "--output"]);
    command.arg(place("later/log")).arg("--output");
    command.arg(format!("otlp:https://127.0.0.1:1,ca-file={}", place("ca.pem").display()));
    command.arg("--history-dir").arg(place("blocked/history"));
    let agent = Agent::spawn(command)?;
    agent.wait_for("its start", |records| records.iter().any(|r| r.text("/phase") == "started"))?;
    let started = agent.records().into_iter().find(|r| r.text("/phase") == "started").context("a start")?;
    let error = |status: &Record, at: usize| {
        status.list("/sinks").get(at).and_then(|sink| sink["error"].as_str()).unwrap_or_default().to_owned()
    };
    for (at, named) in [(1, "later"), (2, "ca-file="), (3, "blocked is not a folder")] {
        assert!(error(&started, at).contains(named), "{named}: {started}");
    }
    send(&pair, &agent, 5000)?;

    fs::create_dir(place("later"))?;
    fs::remove_file(place("blocked"))?;
    let has_lines = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
    eventually("the late outputs", || {
        let history = files_of(&place("blocked/history")).unwrap_or_default();
        Ok((has_lines(&place("later/log")) && !history.is_empty()).then_some(()))
    })?;
    send(&pair, &agent, 5001)?;
    let run = agent.stop()?;
    run.balance()?;
    run.account_for("denied", pair.counted("denied")?, &pair.netfilter_drops(&run))?;

    let stopped = run.stopped()?;
    let all = packets(&run.records);
    for (at, text) in [(1, fs::read_to_string(place("later/log"))?), (3, files_of(&place("blocked/history"))?)] {
        let late = records(&text)?;
        for (expected, record) in (1..).zip(&late) {
            assert_eq!(record.number("/seq"), Some(expected), "{record}");
        }
        let declared = |r: &&Record| r.text("/stage") == "sink" && r.text("/reason") == "not_open";
        let missed: u64 = late.iter().filter(declared).filter_map(|record| record.number("/count")).sum();
        assert!(missed > 0, "nothing declared in {text}");
        assert_eq!(packets(&late) + missed, all, "{text}");
        let sink = &stopped.list("/sinks")[at];
        assert_eq!((sink["lost"].as_u64(), &sink["error"]), (Some(missed), &Value::Null), "{stopped}");
        let ports: Vec<_> = drops(&late).filter(|r| pair.lab.owns(r)).map(|r| r.number("/destination/port")).collect();
        assert_eq!(ports, [Some(5001)], "{text}");
    }
    let never = &stopped.list("/sinks")[2];
    assert_eq!((never["written"].as_u64(), never["lost"].as_u64()), (Some(0), Some(all)), "{stopped}");
    // One message for each that fails, and one for each that works again.
    let lines = |words: &str| run.stderr.lines().filter(|line| line.contains(words)).count();
    assert_eq!((lines("records can't be written"), lines("can be written again")), (3, 2), "{}", run.stderr);
    Ok(())
}

/// A receiver answers that it is busy, and then with an absurdly long Retry-After; another does not exist. Their records are lost and
/// counted, and other outputs lose nothing.
#[test]
fn a_receiver_that_takes_nothing_ends_nothing() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let busy = Collector::start(&[
        ("503 Service Unavailable", "", b""),
        ("503 Service Unavailable", "retry-after: 18446744073709551615\r\n", b""),
    ])?;
    let busy_output = format!("otlp:http://{}", busy.address);
    let manifests = pair.manifests().to_string_lossy();
    let outputs = ["--output", "stdout", "--output", &busy_output, "--output", "otlp:http://127.0.0.1:1"];
    let agent = Agent::start(&[&["--manifests", &manifests], &outputs[..]].concat())?;
    eventually("the request after the refusals", || Ok((!busy.taken().0.is_empty()).then_some(())))?;
    send(&pair, &agent, 5000)?;
    let run = agent.stop()?;
    run.balance()?;
    assert!(run.stderr.contains("the receiver takes no records"), "{}", run.stderr);
    let sinks = run.stopped()?.list("/sinks").to_vec();
    assert!(sinks[1]["records"].as_u64() > Some(0) && sinks[1]["error"].is_null(), "{sinks:#?}");
    assert!(sinks[2]["error"].as_str().is_some_and(|error| error.contains("Connection refused")), "{sinks:#?}");
    Ok(())
}

fn agent(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(agent::binary()?).arg("agent").args(arguments).output()?)
}

/// The agent does not start without its first output, or with a wrong option.
#[test]
fn the_first_output_has_to_start_and_options_have_to_be_right() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start("")?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let ca = "otlp:https://127.0.0.1:1,ca-file=/nonexistent/ca.pem";
    for (outputs, code, named) in [
        (&["/nonexistent/log"][..], 1, "/nonexistent: No such file or directory"),
        (&[ca], 1, "ca-file=/nonexistent/ca.pem: No such file or directory"),
        (&["stdout", "otlp:nowhere"], 2, "http:// or https:// and a host"),
        (&["stdout", "/log,group=adm"], 2, "expected the number of a group"),
        (&["stdout", "stdout"], 2, "given twice"),
    ] {
        let outputs = outputs.iter().flat_map(|output| ["--output", output]);
        let arguments: Vec<&str> = ["--manifests", &manifests].into_iter().chain(outputs).collect();
        let output = agent(&arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
        super::lifecycle::quiet(&stderr);
    }
    // An option of the config file that needs one of the command line is refused without it.
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), "history-mib: 1\n")?;
    let (config, history) = (file.path().to_string_lossy(), tempfile::tempdir()?);
    let history = history.path().to_string_lossy();
    let needed = ["--manifests", &manifests, "--duration", "1ms", "--config", &config, "--history-dir", &history];
    for (arguments, code) in [(&needed[..6], 2), (&needed, 0)] {
        let output = agent(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(code == 0 || stderr.contains("--history-dir"), "{stderr}");
    }
    Ok(())
}

/// An agent on a system without certificate authorities, as in an image from scratch.
fn without_authorities(pair: &Pair, outputs: &[String]) -> Result<Command> {
    let mut command = Command::new(agent::binary()?);
    command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    command.args(["agent", "--duration", "1s", "--manifests"]).arg(pair.manifests());
    command.args(outputs.iter().flat_map(|output| ["--output", output]));
    Ok(command)
}

#[test]
fn otlp_needs_no_certificates_of_the_system() -> Result<()> {
    require!(can_run_lab());
    require!(has_program("openssl", "openssl"));
    let pair = Pair::start("")?;
    let dir = tempfile::tempdir()?;
    certificates(dir.path())?;
    let (plain, tls) = (Collector::start(&[])?, Collector::start_tls(dir.path())?);
    let ca = dir.path().join("ca.pem");
    let outputs = [
        "stdout".to_owned(),
        format!("otlp:http://{}", plain.address),
        format!("otlp:https://{},ca-file={}", tls.address, ca.display()),
    ];
    let run = Agent::spawn(without_authorities(&pair, &outputs)?)?.finish()?;
    run.balance()?;
    for collector in [plain, tls] {
        let (taken, heads) = collector.taken();
        assert!(!taken.is_empty() && heads.iter().all(|head| head.starts_with("POST /v1/logs ")), "{heads:?}");
    }
    Ok(())
}

/// If a variable names authorities that don't exist, the agent does not use others.
#[test]
fn authorities_that_a_variable_names_have_to_be_there() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start("")?;
    let output = without_authorities(&pair, &["otlp:https://127.0.0.1:1".to_owned()])?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("SSL_CERT_FILE=/nonexistent: no certificate authority there"), "{stderr}");
    Ok(())
}
