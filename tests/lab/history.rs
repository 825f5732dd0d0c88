//! Policies are edited and addresses get new owners: a record has the state at the time of its packet.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::pair::{self, CLIENT, DENY, Pair, SERVER, SERVER6};
use netpol_trace_tests::record::{Record, drops};
use netpol_trace_tests::topology::Host;
use netpol_trace_tests::{can_run_lab, require, traffic};

/// A pod that the manifests don't have at first.
const LATE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 4);
const LATE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 4);

/// Between two packets of [`while_sending`].
const PACE: Duration = Duration::from_millis(50);

/// Has `host` send to the server until `meanwhile` returns.
fn while_sending(host: &Host, from: Ipv4Addr, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                traffic::udp(&host.netns, from.into(), [(SERVER, 5000).into()], 32)?;
                std::thread::sleep(PACE);
            }
            anyhow::Ok(())
        });
        let result = meanwhile();
        done.store(true, Ordering::Release);
        sender.join().expect("the sender")?;
        result
    })
}

fn time(record: &Record) -> Timestamp {
    record.text("/time").parse().expect("a time")
}

fn is_change(record: &Record, change: &str) -> bool {
    record.kind() == "policy_change" && record.text("/change") == change
}

/// When the agent learned of the one change of that kind.
fn learned(records: &[Record], change: &str) -> Result<Timestamp> {
    let mut found = records.iter().filter(|record| is_change(record, change));
    let first = found.next().with_context(|| format!("no policy_change record: {change}"))?;
    assert_eq!(found.next(), None, "one record a change");
    Ok(time(first))
}

/// Waits until a packet that was dropped after the change has its record.
fn goes_on_after(pair: &Pair, agent: &Agent, change: &str) -> Result<()> {
    agent.wait_for(&format!("drops after the change {change}"), |records| {
        let changed = records.iter().find(|record| is_change(record, change)).map(time);
        let mut own = drops(records).filter(|record| pair.lab.owns(record));
        changed.is_some_and(|changed| own.any(|record| time(record) > changed))
    })
}

/// Replaces a file atomically, as an editor or a mounted ConfigMap does.
fn replace(file: &Path, content: &str) -> Result<()> {
    let new = file.with_extension("new~");
    fs::write(&new, content)?;
    Ok(fs::rename(new, file)?)
}

/// One record says what the edit removed. Each drop names the policy's version at its time.
#[test]
fn a_policy_is_edited_and_deleted_while_packets_drop() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start(DENY)?;
    let file = pair.manifests().join("policy.yaml");
    let first = fs::read_to_string(&file)?.replace("  name: ", "  generation: 1\n  name: ");
    let allows = |port| format!("  ingress:\n  - from:\n    - podSelector: {{}}\n    ports:\n    - port: {port}\n");
    let before = first.clone() + &allows(81);
    let after = first.replace("generation: 1", "generation: 2") + &allows(82);
    fs::write(&file, &before)?;
    let agent = pair.watch()?;
    while_sending(pair.client()?, CLIENT, || {
        agent.wait_for("a first drop", |records| drops(records).any(|record| pair.lab.owns(record)))?;
        replace(&file, &after)?;
        goes_on_after(&pair, &agent, "edited")?;
        fs::remove_file(&file)?;
        goes_on_after(&pair, &agent, "deleted")
    })?;
    let run = agent.stop()?;
    run.balance()?;
    let (edited, deleted) = (learned(&run.records, "edited")?, learned(&run.records, "deleted")?);
    let mut seen = [0, 0, 0];
    for record in pair.netfilter_drops(&run) {
        let versions: Vec<_> = record.list("/verdict/ingress/isolated_by").iter().collect();
        let [which, generation] = match time(&record) {
            at if at < edited => [0, 1],
            at if at < deleted => [1, 2],
            _ => [2, 0],
        };
        seen[which] += 1;
        assert_eq!(record.cause(), "policy", "the enforcer still has the rule: {record}");
        if generation == 0 {
            assert!(versions.is_empty(), "{record}");
            assert_eq!(record.text("/verdict/basis"), "policy_changing", "{record}");
            // It names the deleted policy, in its last version.
            let changed = record.list("/verdict/ingress/changed");
            assert_eq!(changed.len(), 1, "{record}");
            let which = (&changed[0]["name"], &changed[0]["change"], &changed[0]["generation"]);
            assert_eq!(which, (&"deny-server".into(), &"deleted".into(), &2.into()), "{record}");
            let ago = time(&record).duration_since(deleted).as_secs();
            assert_eq!(changed[0]["changed_ago_seconds"], ago, "{record}");
            continue;
        }
        assert_eq!(record.isolated_by("ingress"), ["lab/deny-server"], "{record}");
        assert_eq!(versions[0]["generation"], generation, "{record}");
        if generation == 2 {
            let ago = time(&record).duration_since(edited).as_secs();
            assert_eq!(versions[0]["changed_ago_seconds"], ago, "{record}");
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "drops under each state: {seen:?}");

    let change_record = |change| run.records.iter().find(|record| is_change(record, change)).expect("looked for above");
    let edit = change_record("edited");
    assert_eq!((edit.text("/namespace"), edit.text("/policy")), ("lab", "deny-server"), "{edit}");
    assert_eq!((edit.number("/generation_before"), edit.number("/generation")), (Some(1), Some(2)), "{edit}");
    assert_eq!(edit.text("/rules_removed/0/allows"), "from pods {}: 81/TCP", "{edit}");
    assert_eq!(edit.text("/rules_added/0/allows"), "from pods {}: 82/TCP", "{edit}");
    let delete = change_record("deleted");
    assert_eq!(delete.text("/no_longer_isolates/0/workloads/0"), "Pod/server", "{delete}");
    assert_eq!(delete.number("/no_longer_isolates/0/pods"), Some(1), "{delete}");
    Ok(())
}

/// A pod that is not in the manifests sends to the server. Then the manifests get this pod, and another pod with the server's address in
/// the server's place. Returns the drops' records, each with whether the agent knew of the change.
fn change_hands(other: impl Fn(String) -> String) -> Result<Vec<(Record, bool)>> {
    can_run_lab()?;
    let mut pair = Pair::start(DENY)?;
    pair.lab.attach("late", LATE, LATE6)?;
    let file = pair.manifests().join("cluster.yaml");
    let before = fs::read_to_string(&file)?;
    let server = |name| pair::pod(name, &[IpAddr::from(SERVER), SERVER6.into()]);
    let after = before.replace(&server("server"), &other(server("other")));
    assert_ne!(before, after, "the server's place was found");
    // The record of the changed labels has the time when the agent read the file.
    let after = after.replacen("  name: lab\n", "  name: lab\n  labels:\n    edited: \"yes\"\n", 1);
    let after = after + &pair::pod("late", &[LATE.into(), LATE6.into()]);
    let agent = pair.watch()?;
    while_sending(pair.lab.host("late")?, LATE, || {
        agent.wait_for("a drop that nobody could be found for", |records| {
            drops(records).any(|record| pair.lab.owns(record) && record.text("/source/kind") == "unknown")
        })?;
        replace(&file, &after)?;
        goes_on_after(&pair, &agent, "namespace_labels")
    })?;
    let run = agent.stop()?;
    run.balance()?;
    let changed = learned(&run.records, "namespace_labels")?;
    let records = pair.netfilter_drops(&run);
    let known = |record: Record| {
        let known = time(&record) > changed;
        (record, known)
    };
    Ok(records.into_iter().map(known).collect())
}

/// The other pod has no creation time: until the agent saw it, the address was the server's. The sender is named although its address was
/// unknown when it sent.
#[test]
fn an_address_is_reused_while_packets_drop() -> Result<()> {
    let undated = |pod: String| pod.replace("  creationTimestamp: \"2026-10-05T08:13:00Z\"\n", "");
    let records = require!(change_hands(undated));
    let (mut early, mut after) = (0, 0);
    for (record, known) in &records {
        assert_eq!(record.pod("destination"), if *known { "lab/other" } else { "lab/server" }, "{record}");
        let named = record.pod("source") == "lab/late";
        assert!(named || !known, "{record}");
        early += u32::from(named && !known);
        after += u32::from(*known);
    }
    assert!(early > 0 && after > 0, "{early} named although they came too early, {after} after: {records:?}");
    Ok(())
}

/// The other pod's creation time is long before, so in the last seconds before the change either pod may have had the address.
#[test]
fn an_address_that_either_pod_may_have_had_is_nobodys() -> Result<()> {
    let records = require!(change_hands(|pod| pod));
    let ambiguous: Vec<_> = records.iter().filter(|(r, known)| r.pod("source") == "lab/late" && !known).collect();
    assert!(!ambiguous.is_empty(), "{records:?}");
    for (record, _) in ambiguous {
        assert_eq!(record.text("/destination/kind"), "unknown", "{record}");
        let note = record.text("/destination/note");
        assert!(note.contains("lab/server") && note.contains("lab/other"), "{record}");
        assert_eq!(record.text("/verdict/basis"), "ip_reused", "{record}");
    }
    for (record, known) in &records {
        if *known {
            assert_eq!(record.pod("destination"), "lab/other", "{record}");
        }
    }
    Ok(())
}
