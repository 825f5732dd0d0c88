//! The demo as an end-to-end test.

use anyhow::Result;
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::demo::flows::{ExpectedOutcome, FLOWS};
use netpol_trace_tests::demo::{Demo, check};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::traffic::Outcome;
use netpol_trace_tests::{can_run_lab, nft, require};

/// Without the agent: clients and counters agree with the flows' data.
#[test]
fn clients_and_counters_agree_with_what_is_expected() -> Result<()> {
    require!(can_run_lab());
    let demo = Demo::start()?;
    let attempts = demo.send()?;
    let wrong = [check::reality(&attempts), check::counters(&nft::counters(demo.lab.node())?)].concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    no_ftp_helper(&demo)
}

/// Without the policies' table the denied flows succeed, and the other failures remain.
#[test]
fn without_the_policies_only_the_other_failures_remain() -> Result<()> {
    require!(can_run_lab());
    let demo = Demo::start()?;
    demo.lab.enforce("delete table inet network-policy")?;
    for (flow, attempt) in FLOWS.iter().zip(demo.send()?) {
        let want = match &flow.expect {
            ExpectedOutcome::Passes | ExpectedOutcome::Dropped { .. } => &Outcome::Passed,
            ExpectedOutcome::Fails { outcome, .. } => outcome,
        };
        assert_eq!(attempt.outcome, *want, "{flow}");
    }
    Ok(())
}

/// Fails if nf_conntrack_ftp's helper is active: conntrack would expect FTP's data connection, and the ruleset would accept it as RELATED.
fn no_ftp_helper(demo: &Demo) -> Result<()> {
    let node = demo.lab.node();
    let read = |path: &str| node.run(|| std::fs::read_to_string(path)).unwrap_or_default();
    // Helpers that attach by port number; gone since Linux 6.3.
    let automatic = read("/proc/sys/net/netfilter/nf_conntrack_helper");
    assert_ne!(automatic.trim(), "1", "nf_conntrack_helper is on in the node's namespace");
    assert_eq!(read("/proc/thread-self/net/nf_conntrack_expect"), "", "conntrack expects connections");
    let ruleset = node.command("nft", &["list", "ruleset"], "")?;
    assert!(!String::from_utf8_lossy(&ruleset.stdout).contains("ct helper"), "the ruleset sets a conntrack helper");
    Ok(())
}

/// Kernel, agent and records together: the records hold exactly the expected drops.
#[test]
fn records_hold_exactly_the_expected_drops() -> Result<()> {
    require!(can_run_lab());
    // With --all-drops the failures that are no policy's are there to be checked too.
    for options in [&["--all-drops"][..], &[]] {
        let demo = Demo::start()?;
        let manifests = netpol_trace_tests::demo::manifests();
        let agent = Agent::start(&[&["--manifests", &manifests.to_string_lossy()][..], options].concat())?;
        let attempts = demo.send()?;
        let run = agent.stop()?;
        let counters = nft::counters(demo.lab.node())?;
        run.balance()?;
        let all = !options.is_empty();
        let check = |records: &[Record]| check::records(&demo.lab, records, &attempts, &counters, 0, all);
        let wrong = check::records(&demo.lab, &run.records, &attempts, &counters, run.lost()?, all);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // The check notices a missing record, and a record with a wrong cause.
        for (number, record) in run.records.iter().enumerate().filter(|(_, record)| demo.lab.owns(record)) {
            let mut changed = run.records.clone();
            if record.cause() == "policy" {
                changed.remove(number);
                assert_ne!(check(&changed), [""; 0], "its absence goes unnoticed: {record}");
            } else {
                let cause = format!("\"cause\":\"{}\"", record.cause());
                changed[number] = Record::parse(&record.to_string().replace(&cause, "\"cause\":\"policy\""))?;
                assert_ne!(check(&changed), [""; 0], "blaming policy goes unnoticed: {record}");
            }
        }
    }
    Ok(())
}
