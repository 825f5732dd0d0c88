//! Compares the expected outcomes with the clients' outcomes, the kernel's counters and the records. Each function returns one line per
//! disagreement.

use std::collections::BTreeMap;

use super::flows::{ExpectedOutcome, FLOWS, Flow, HOSTS};
use crate::accounting::WRITTEN;
use crate::record::{Record, drops, packets};
use crate::topology::Lab;
use crate::traffic::{Attempt, Outcome};

/// Compares the clients' outcomes with the expected ones.
pub fn reality(attempts: &[Attempt]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (flow, attempt) in FLOWS.iter().zip(attempts) {
        let want = match &flow.expect {
            ExpectedOutcome::Passes => &Outcome::Passed,
            ExpectedOutcome::Dropped { .. } => &Outcome::TimedOut,
            ExpectedOutcome::Fails { outcome, .. } => outcome,
        };
        if attempt.outcome != *want {
            wrong.push(format!("{flow}: the client saw {:?}, expected {want:?}", attempt.outcome));
        }
    }
    wrong
}

/// Compares the rules' counters with the expected ones: a counter counts if and only if a flow is expected to hit it.
pub fn counters(counters: &BTreeMap<String, u64>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, packets) in counters {
        let flows = FLOWS.iter().filter(|flow| flow.counter() == Some(name)).count() as u64;
        if (flows == 0 && *packets > 0) || *packets < flows {
            wrong.push(format!("nft counter {name}: {packets} packets for {flows} flows"));
        }
    }
    for flow in FLOWS {
        if let Some(name) = flow.counter().filter(|name| !counters.contains_key(*name)) {
            wrong.push(format!("{flow}: the ruleset has no counter {name}"));
        }
    }
    wrong
}

/// Compares the records with all of it. As many packets as the agent declared `lost` may be missing. `all_drops` is true if the agent
/// writes every cause.
pub fn records(
    lab: &Lab,
    all: &[Record],
    attempts: &[Attempt],
    counters: &BTreeMap<String, u64>,
    lost: u64,
    all_drops: bool,
) -> Vec<String> {
    let written = |cause: &str| all_drops || WRITTEN.contains(&cause);
    let mut wrong = Vec::new();
    let own: Vec<&Record> = drops(all).filter(|record| lab.owns(record)).collect();
    for (flow, attempt) in FLOWS.iter().zip(attempts) {
        let mine: Vec<&Record> = own.iter().copied().filter(|record| is_of(record, attempt)).collect();
        match &flow.expect {
            ExpectedOutcome::Passes => {}
            ExpectedOutcome::Dropped { direction, isolated_by, .. } => {
                if mine.is_empty() && lost == 0 {
                    wrong.push(format!("{flow}: no record"));
                }
                for record in mine {
                    let faults = policy_drop(flow, attempt, record, direction, isolated_by);
                    if !faults.is_empty() {
                        wrong.push(format!("{flow}: {}: {record}", faults.join(", ")));
                    }
                }
            }
            ExpectedOutcome::Fails { cause, .. } => {
                if written(cause) && lost == 0 && !mine.iter().any(|record| record.cause() == *cause) {
                    wrong.push(format!("{flow}: no record with cause {cause}"));
                }
            }
        }
    }
    for record in own.iter().filter(|record| WRITTEN.contains(&record.cause())) {
        let flow = FLOWS.iter().zip(attempts).find(|(_, attempt)| is_of(record, attempt)).map(|(flow, _)| flow);
        if flow.is_none_or(|flow| cause(flow) != Some(record.cause())) {
            let whose = flow.map_or("no flow of the demo".to_owned(), Flow::to_string);
            wrong.push(format!("{whose}: a record that was not expected: {record}"));
        }
    }
    for record in own.iter().filter(|record| !written(record.cause())) {
        wrong.push(format!("written without --all-drops: {record}"));
    }
    for (name, counted) in counters {
        if FLOWS.iter().any(|flow| flow.counter() == Some(name) && !cause(flow).is_some_and(written)) {
            continue;
        }
        let hits = |record: &&Record| {
            FLOWS.iter().zip(attempts).any(|(flow, attempt)| {
                flow.counter() == Some(name) && is_of(record, attempt) && cause(flow) == Some(record.cause())
            })
        };
        let recorded = packets(own.iter().copied().filter(hits));
        if recorded > *counted || recorded + lost < *counted {
            wrong.push(format!("nft counter {name}: {counted} packets, records {recorded}, declared lost {lost}"));
        }
    }
    wrong
}

/// True if a record is about a packet that this attempt sent, not about an answer to it.
pub fn is_of(record: &Record, attempt: &Attempt) -> bool {
    // A SYN-ACK is a reply: its record names the opener of the connection as the source.
    let sender = if record.value()["reply"] == true { "destination" } else { "source" };
    record.address(sender) == Some(attempt.source)
}

fn cause(flow: &Flow) -> Option<&'static str> {
    match flow.expect {
        ExpectedOutcome::Passes => None,
        ExpectedOutcome::Dropped { .. } => Some("policy"),
        ExpectedOutcome::Fails { cause, .. } => Some(cause),
    }
}

fn policy_drop(flow: &Flow, attempt: &Attempt, record: &Record, direction: &str, isolated_by: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut equal = |what: &str, have: &str, want: &str| {
        if have != want {
            wrong.push(format!("{what} is {have:?}, expected {want:?}"));
        }
    };
    let (source, destination) = flow.ends();
    equal("cause", record.cause(), "policy");
    equal("direction", record.text("/direction"), direction);
    equal("verdict.result", record.text("/verdict/result"), "denied");
    equal("verdict's side", record.text(&format!("/verdict/{direction}/result")), "denied");
    equal("isolated_by", &record.isolated_by(direction).join(" "), &isolated_by.join(" "));
    equal("source pod", &record.pod("source"), pod(source));
    equal("destination pod", &record.pod("destination"), pod(destination));
    for (end, host) in [("source", source), ("destination", destination)] {
        let kind = if pod(host).is_empty() { "external" } else { "pod" };
        equal(&format!("{end}.kind"), record.text(&format!("/{end}/kind")), kind);
    }
    equal("service", &record.service("destination"), flow.to.service);
    let original = match (record.text("/destination/original/ip"), record.number("/destination/original/port")) {
        (ip, Some(port)) if ip.contains(':') => format!("[{ip}]:{port}"),
        (ip, Some(port)) => format!("{ip}:{port}"),
        (ip, None) => ip.to_owned(),
    };
    let translated = !flow.to.service.is_empty();
    equal("original", &original, if translated { flow.to.address } else { "" });
    let port = if translated { flow.to.port } else { attempt.destination.port() };
    equal("destination port", &record.number("/destination/port").unwrap_or_default().to_string(), &port.to_string());
    equal("hook", record.text("/kernel/hook"), "forward");
    wrong
}

fn pod(host: &str) -> &'static str {
    HOSTS.iter().find(|spec| spec.name == host).map_or("", |spec| spec.pod)
}
