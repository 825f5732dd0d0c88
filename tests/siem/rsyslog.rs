//! rsyslog reads the agent's file with deploy/collectors/rsyslog.conf and parses every field.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::Result;
use netpol_trace_tests::process::KilledOnDrop;
use netpol_trace_tests::{can_run_lab, eventually, require};
use serde_json::Value;

use crate::consumers::{debian, program};
use crate::run::everything;

#[test]
fn rsyslog_parses_every_line() -> Result<()> {
    let mut rsyslogd = require!(program("usr/sbin/rsyslogd"));
    require!(can_run_lab());
    let all = everything()?;
    let native = all.files("native", ".jsonl")?.remove(0);
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    // The published example, with this test's paths.
    let example = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/collectors/rsyslog.conf"))?;
    let config = example
        .replace("/var/log/netpol-trace.jsonl", &native.to_string_lossy())
        .replace("/var/spool/rsyslog", &folder.path().to_string_lossy())
        .replace("/var/log/netpol-trace-drops.log", &at("drops.log"))
        .replace("/var/log/netpol-trace-broken.log", &at("broken.log"));
    fs::write(at("rsyslog.conf"), config)?;
    let modules = debian(&format!("usr/lib/{}-linux-gnu/rsyslog", std::env::consts::ARCH));
    // In the foreground, with a pid file of its own, so that it does not affect the machine's own rsyslog.
    rsyslogd.args(["-n", "-f", &at("rsyslog.conf"), "-i", &at("pid"), "-M"]).arg(&modules);
    let log = fs::File::create(at("rsyslogd.log"))?;
    let _running = KilledOnDrop(rsyslogd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    let want: Vec<Value> = all
        .run
        .records
        .iter()
        .filter(|record| record.is_drop())
        .map(|record| {
            let text = |pointer: &str| record.text(pointer).to_owned();
            serde_json::json!({
                "time": text("/time"), "fingerprint": text("/fingerprint"), "cause": text("/cause"), "direction": text("/direction"),
                "source": record.pod("source"), "destination": record.pod("destination"),
                "port": record.number("/destination/port").map(|port| port.to_string()),
            })
        })
        .collect();
    let written = eventually("rsyslog has written every drop", || {
        let text = fs::read_to_string(at("drops.log")).unwrap_or_default();
        Ok((text.lines().count() >= want.len()).then_some(text))
    });
    let written = written.map_err(|error| error.context(fs::read_to_string(at("rsyslogd.log")).unwrap_or_default()))?;
    let written: Vec<Value> = written.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(written.len(), want.len());
    for (written, want) in written.iter().zip(&want) {
        assert_eq!(written, want);
    }
    assert_eq!(fs::read_to_string(at("broken.log")).unwrap_or_default(), "", "lines that rsyslog could not parse");
    Ok(())
}
