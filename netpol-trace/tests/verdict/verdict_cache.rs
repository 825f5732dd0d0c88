//! The pipeline reuses a cached verdict for the next packets of a connection, as long as an evaluation would return the same.

use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use netpol_trace::cluster::Object;
use netpol_trace::cluster::{Change, Key, Kind};
use netpol_trace::cluster::{Cluster, SourceStatus};
use netpol_trace::kernel::KernelDrop;
use netpol_trace::model::cluster::Pod;
use netpol_trace::pipeline::Pipeline;
use netpol_trace::pipeline::accounting::Intake;
use netpol_trace::record::format::Format;
use netpol_trace::sink::RecordIds;
use netpol_trace::sink::fan_out::FanOut;
use netpol_trace::sink::file::{FileSink, Rotation};
use netpol_trace::storage::Readers;
use serde_json::Value;

use crate::{allocations, drops, large, mk};

const PODS: usize = 100;

fn cluster() -> Cluster {
    let cluster = Cluster::live();
    // Half a second off, so that the policies' age in seconds changes between the drops.
    let at = Timestamp::now() - SignedDuration::from_millis(3_600_500);
    let mut objects = large::objects(PODS);
    for object in &mut objects {
        if let Object::Policy(policy) = object {
            policy.changed = Some(at);
        }
    }
    cluster.apply(objects.into_iter().map(Change::Upsert).collect(), at);
    synced(&cluster, true);
    cluster
}

fn synced(cluster: &Cluster, synced: bool) {
    cluster.set_source(SourceStatus { synced, ..SourceStatus::expected("pods") });
}

fn pipeline(cluster: &Cluster, path: &Path) -> Pipeline {
    let mut output = FanOut::new(RecordIds::new("5f3a9c1e".into(), None, None));
    output
        .add(Box::new(FileSink::open(path, Format::Native, Rotation::default(), Readers::default()).unwrap()))
        .unwrap();
    Pipeline::new(cluster.clone(), Some("node-1".into()), false, Arc::new(Intake::default()), output)
}

/// The records of `drops`, without their numbers.
fn records(pipeline: &mut Pipeline, path: &Path, drops: &[KernelDrop]) -> Vec<Value> {
    let before = std::fs::read_to_string(path).unwrap_or_default().lines().count();
    pipeline.handle(drops.iter().cloned()).unwrap();
    pipeline.revisit(true).unwrap();
    pipeline.output.drain();
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().skip(before).map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        // Each pipeline sets its clock, some microseconds off. Equal packets have different fingerprints.
        ["id", "seq", "time", "fingerprint"]
            .iter()
            .for_each(|field| _ = record.as_object_mut().unwrap().remove(*field));
        record
    });
    lines.collect()
}

/// A pipeline that has seen `drops` before must write the same records as a new one.
fn assert_same(folder: &Path, old: &mut Pipeline, cluster: &Cluster, drops: &[KernelDrop], after: &str) {
    let cached = records(old, &folder.join("old"), drops);
    let path = folder.join("new");
    let evaluated = records(&mut pipeline(cluster, &path), &path, drops);
    std::fs::remove_file(path).unwrap();
    assert_eq!(cached.len(), drops.len(), "{after}");
    for (cached, evaluated) in cached.iter().zip(&evaluated) {
        assert_eq!(cached, evaluated, "{after}");
    }
}

#[test]
fn a_cached_verdict_is_what_an_evaluation_returns() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster();
    let mut drops = drops::denied(&cluster, PODS, 300);
    let mut old = pipeline(&cluster, &folder.path().join("old"));
    for time in ["once", "twice", "thrice"] {
        assert_same(folder.path(), &mut old, &cluster, &drops, time);
    }
    // 0.7 s later the policies' age in seconds is one higher.
    for drop in &mut drops {
        drop.packet.as_mut().unwrap().time += 700_000_000;
    }
    assert_same(folder.path(), &mut old, &cluster, &drops, "later");
    assert_same(folder.path(), &mut old, &cluster, &drops, "later again");
    synced(&cluster, false);
    assert_same(folder.path(), &mut old, &cluster, &drops, "out of sync");
    synced(&cluster, true);

    // Another port gives another nearest rule and hint. All changes are older than the drops.
    let at = Timestamp::now() - SignedDuration::from_mins(30);
    let api = mk::ingress("team-1/api", "app=api", [mk::rule([mk::pods("app=frontend")], ["8081/TCP"])]);
    cluster.apply(vec![Change::Upsert(Object::Policy(api))], at);
    assert_same(folder.path(), &mut old, &cluster, &drops, "another policy");
    let gone = Key { kind: Kind::Policy, namespace: Some("team-2".into()), name: "default-deny".into() };
    cluster.apply(vec![Change::Delete(gone)], at);
    assert_same(folder.path(), &mut old, &cluster, &drops, "a policy less");
    let other = large::pod(7);
    let other = Pod { labels: mk::labels("app=other"), ..other };
    cluster.apply(vec![Change::Upsert(Object::Pod(other))], at);
    assert_same(folder.path(), &mut old, &cluster, &drops, "other labels");
}

/// The allocations of a record: itself, its body, its id, its Community ID and its TCP flags.
#[test]
fn a_cached_verdict_makes_five_allocations() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster();
    let drops = drops::denied(&cluster, PODS, 300);
    let mut pipeline = pipeline(&cluster, &folder.path().join("lines"));
    for _ in 0..2 {
        pipeline.handle(drops.iter().cloned()).unwrap();
    }
    pipeline.output.drain();
    let repeated = drops.clone();
    let ((), allocations) = allocations::during(|| pipeline.handle(repeated).unwrap());
    pipeline.output.drain();
    let (most, found) = (5 * drops.len() + 50, allocations as usize);
    assert!(found <= most, "{found} allocations for {} records", drops.len());
}
