//! Each format against its schema, and all sinks against each other.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::Result;
use netpol_trace_tests::{can_run_lab, require};
use serde_json::Value;

use crate::consumers::{PYTHON, check, find};
use crate::run::everything;

/// Where each format has the record's id and its sink's seq.
const PLACES: [(&str, &str, &str); 5] = [
    ("native", "/id", "/seq"),
    ("rotated", "/id", "/seq"),
    ("ecs", "/event/id", "/event/sequence"),
    ("ocsf", "/metadata/uid", "/metadata/sequence"),
    ("otel", "", ""),
];

/// Every sink has the same records in the same order, with a `seq` of its own from 1 on.
#[test]
fn every_sink_has_every_record() -> Result<()> {
    require!(can_run_lab());
    let all = everything()?;
    all.run.balance()?;
    anyhow::ensure!(all.denied >= 10_020 && all.run.lost()? > 0, "the flood was to overrun the ring");
    let want: Vec<&str> = all.run.records.iter().map(|record| record.text("/id")).collect();
    for (name, id, seq) in PLACES {
        let lines = all.lines(name)?;
        let (ids, seqs): (Vec<String>, Vec<Option<u64>>) = match name {
            "otel" => lines.iter().map(otel).unzip(),
            _ => lines.iter().map(|line| (text(line, id), line.pointer(seq).and_then(Value::as_u64))).unzip(),
        };
        assert_eq!(ids, want, "{name}");
        assert!((1..).map(Some).zip(&seqs).all(|(want, seq)| want == *seq), "{name}: seq has a gap");
    }
    // In the last status every sink has written all records.
    let stopped = all.run.stopped()?;
    let sinks = stopped.list("/sinks");
    assert_eq!(sinks.len(), 7, "{stopped}");
    let written = sinks.first().map(|sink| &sink["written"]);
    assert!(
        sinks.iter().all(|sink| Some(&sink["written"]) == written && sink["lost"] == 0 && sink["held"] == 0),
        "{stopped}"
    );
    Ok(())
}

fn text(line: &Value, pointer: &str) -> String {
    line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn otel(line: &Value) -> (String, Option<u64>) {
    let attributes = line.pointer("/resourceLogs/0/scopeLogs/0/logRecords/0/attributes").and_then(Value::as_array);
    let value = |key: &str, kind: &str| {
        let pair = attributes.into_iter().flatten().find(|pair| pair["key"] == key)?;
        pair["value"][kind].as_str().map(str::to_owned)
    };
    let seq = value("netpol_trace.seq", "intValue").and_then(|seq| seq.parse().ok());
    (value("log.record.uid", "stringValue").unwrap_or_default(), seq)
}

/// A file that rotates loses nothing and keeps its limit.
#[test]
fn a_rotated_file_keeps_its_limit() -> Result<()> {
    require!(can_run_lab());
    let files = everything()?.files("rotated", ".jsonl")?;
    assert!(files.len() > 2, "never rotated: {files:?}");
    for file in &files {
        assert!(file.metadata()?.len() <= 64 * 1024, "{}", file.display());
    }
    Ok(())
}

/// Checks every record of the run against the published schema. The run has records of every kind.
fn holds(format: &str, suffix: &str, kinds: &[&str]) -> Result<()> {
    let python = find(PYTHON)?;
    can_run_lab()?;
    let begin = if suffix == ".otlp" { "request" } else { format };
    let seen = check(&python, format, &everything()?.files(begin, suffix)?)?;
    let seen: BTreeSet<&str> = seen.as_object().into_iter().flat_map(|seen| seen.keys().map(String::as_str)).collect();
    assert_eq!(seen, kinds.iter().copied().collect());
    Ok(())
}

#[test]
fn ocsf_as_published() -> Result<()> {
    let kinds = ["base_event Agent Status", "base_event Records Lost", "network_activity Traffic"];
    require!(holds("ocsf", ".jsonl", &kinds));
    Ok(())
}

#[test]
fn ecs_as_published() -> Result<()> {
    require!(holds("ecs", ".jsonl", &["netpol_trace.drop", "netpol_trace.loss", "netpol_trace.status"]));
    Ok(())
}

const EVENTS: [&str; 3] = ["netpol_trace.agent.status", "netpol_trace.packet.denied", "netpol_trace.records.lost"];

#[test]
fn otel_lines_are_otlp() -> Result<()> {
    require!(holds("otel", ".jsonl", &EVENTS));
    Ok(())
}

#[test]
fn the_exporter_speaks_otlp() -> Result<()> {
    require!(holds("otlp", ".otlp", &EVENTS));
    Ok(())
}

/// 1,000 random flows have the community ids of the reference implementation.
#[test]
fn community_ids_are_the_references() -> Result<()> {
    let python = require!(find(PYTHON));
    let mut flows = tempfile::Builder::new().suffix(".jsonl").tempfile()?;
    // A generator with a fixed seed, for the same flows in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..1000 {
        let six = next() % 2 == 0;
        let mut address = || -> std::net::IpAddr {
            // Few addresses, so that some flows have equal endpoints.
            let host = (next() % 4) as u8;
            match (six, next() % 2) {
                (false, 0) => [10, 0, 0, host].into(),
                (false, _) => (next() as u32).to_be_bytes().into(),
                (true, 0) => std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(),
                (true, _) => (u128::from(next()) << 64 | u128::from(next())).to_be_bytes().into(),
            }
        };
        let ends = (address(), address());
        let protocol = [6_u8, 17, 132, if six { 58 } else { 1 }, 47][(next() % 5) as usize];
        let (a, b) = (next() as u16, if next() % 4 == 0 { 80 } else { next() as u16 });
        let icmp = [0_u8, 3, 8, 11, 13, 14, 128, 129, 133, 135, 136, 145];
        let kind = icmp[(next() % icmp.len() as u64) as usize];
        let (ports, types, shown) = match protocol {
            1 | 58 => (None, Some((kind, b as u8)), Some((u16::from(kind), u16::from(b as u8)))),
            47 => (None, None, None),
            _ => (Some((a, b)), None, Some((a, b))),
        };
        let id = netpol_trace::record::community_id::community_id(ends, protocol, ports, types);
        let mut flow = serde_json::json!({"source": ends.0, "destination": ends.1, "protocol": protocol, "id": id});
        if let Some((sport, dport)) = shown {
            flow["sport"] = sport.into();
            flow["dport"] = dport.into();
        }
        writeln!(flows, "{flow}")?;
    }
    let seen = check(&python, "communityid", &[flows.path().to_owned()])?;
    let count: u64 = seen.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    assert_eq!(count, 1000, "{seen}");
    Ok(())
}
