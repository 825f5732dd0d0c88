//! What was said of a connection is said again of its next packets, and only while it would be said anew.

use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use netpol_trace::cluster::change::{Change, Key, Kind};
use netpol_trace::cluster::{Cluster, SourceStatus};
use netpol_trace::kernel::KernelDrop;
use netpol_trace::model::cluster::{Object, Pod};
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
    // Half a second off, so that what is said of the policies' age changes within a second of the drops.
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
        // The clock is set for each pipeline anew, some microseconds off. Equal packets have fingerprints of their own.
        ["id", "seq", "time", "fingerprint"]
            .iter()
            .for_each(|field| _ = record.as_object_mut().unwrap().remove(*field));
        record
    });
    lines.collect()
}

/// What the pipeline says of `drops`, which has said it before, must be what one says that never saw them.
fn same(folder: &Path, old: &mut Pipeline, cluster: &Cluster, drops: &[KernelDrop], after: &str) {
    let again = records(old, &folder.join("old"), drops);
    let path = folder.join("new");
    let anew = records(&mut pipeline(cluster, &path), &path, drops);
    std::fs::remove_file(path).unwrap();
    assert_eq!(again.len(), drops.len(), "{after}");
    for (again, anew) in again.iter().zip(&anew) {
        assert_eq!(again, anew, "{after}");
    }
}

#[test]
fn it_is_said_again_while_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster();
    let mut drops = drops::denied(&cluster, PODS, 300);
    let mut old = pipeline(&cluster, &folder.path().join("old"));
    for time in ["once", "twice", "thrice"] {
        same(folder.path(), &mut old, &cluster, &drops, time);
    }
    // A second later policies are a second older; and half of one.
    for drop in &mut drops {
        drop.packet.as_mut().unwrap().time += 700_000_000;
    }
    same(folder.path(), &mut old, &cluster, &drops, "later");
    same(folder.path(), &mut old, &cluster, &drops, "later again");
    synced(&cluster, false);
    same(folder.path(), &mut old, &cluster, &drops, "out of sync");
    synced(&cluster, true);

    // Another port, so another nearest rule and hint; a pod with other labels; none of it in the drops' past.
    let at = Timestamp::now() - SignedDuration::from_mins(30);
    let api = mk::ingress("team-1/api", "app=api", [mk::rule([mk::pods("app=frontend")], ["8081/TCP"])]);
    cluster.apply(vec![Change::Upsert(Object::Policy(api))], at);
    same(folder.path(), &mut old, &cluster, &drops, "another policy");
    let gone = Key { kind: Kind::Policy, namespace: Some("team-2".into()), name: "default-deny".into() };
    cluster.apply(vec![Change::Delete(gone)], at);
    same(folder.path(), &mut old, &cluster, &drops, "a policy less");
    let other = large::pod(7);
    let other = Pod { labels: mk::labels("app=other"), ..other };
    cluster.apply(vec![Change::Upsert(Object::Pod(other))], at);
    same(folder.path(), &mut old, &cluster, &drops, "other labels");
}

/// What a record is made of: itself, its body, its id, its Community ID and its TCP flags.
#[test]
fn saying_it_again_makes_five_allocations() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster();
    let drops = drops::denied(&cluster, PODS, 300);
    let mut pipeline = pipeline(&cluster, &folder.path().join("lines"));
    for _ in 0..2 {
        pipeline.handle(drops.iter().cloned()).unwrap();
    }
    pipeline.output.drain();
    let again = drops.clone();
    let ((), allocations) = allocations::during(|| pipeline.handle(again).unwrap());
    pipeline.output.drain();
    let (most, found) = (5 * drops.len() + 50, allocations as usize);
    assert!(found <= most, "{found} allocations for {} records", drops.len());
}
