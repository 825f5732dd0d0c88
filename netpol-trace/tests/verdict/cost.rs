//! The allocations of a verdict; the bench `verdict` measures the times.

use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use netpol_trace::cluster::change::Change;
use netpol_trace::cluster::{Cluster, Index};
use netpol_trace::pipeline::Pipeline;
use netpol_trace::pipeline::accounting::Intake;
use netpol_trace::pipeline::aggregate::RecordBudget;
use netpol_trace::policy;
use netpol_trace::policy::{CniOptions, PolicyResult};
use netpol_trace::sink::RecordIds;
use netpol_trace::sink::fan_out::FanOut;

use crate::{allocations, drops, large};

#[test]
fn the_allowed_path_does_not_allocate() {
    let index = Index::from_objects(large::objects(400));
    let connections = large::connections(&index, 400, 5000);
    let options = CniOptions::default();
    let (allowed, allocations) = allocations::during(|| {
        let findings = connections.iter().map(|c| policy::evaluate(&index, c, &options).result());
        findings.filter(|result| matches!(result, PolicyResult::Allowed(_))).count()
    });
    assert!(allowed > 100, "{allowed} of {} allowed: the test would show nothing", connections.len());
    assert!(allowed < 4900, "{allowed} of {} allowed: the policies are not in force", connections.len());
    assert_eq!(allocations, 0);
}

/// Above the record budget each packet is identified, evaluated and counted, and nothing is rendered.
#[test]
fn a_drop_over_the_budget_does_not_allocate() {
    const PODS: usize = 100;
    let cluster = Cluster::live();
    let at = Timestamp::now() - SignedDuration::from_hours(1);
    cluster.apply(large::objects(PODS).into_iter().map(Change::Upsert).collect(), at);
    let flood = drops::denied(&cluster, PODS, 500);
    let output = FanOut::new(RecordIds::new("5f3a9c1e".into(), None, None));
    let mut pipeline = Pipeline::new(cluster, Some("node-1".into()), false, Arc::new(Intake::default()), output);
    pipeline.budget = Some(RecordBudget::new(1, Instant::now()));
    // The drops within the budget, then the first drop of every aggregate.
    pipeline.handle(flood.clone()).unwrap();
    pipeline.handle(flood.clone()).unwrap();
    let repeated = flood.clone();
    let ((), allocations) = allocations::during(|| pipeline.handle(repeated).unwrap());
    assert_eq!(allocations, 0);
    let aggregated = pipeline.accounting.held as usize;
    assert!(aggregated >= 3 * flood.len() - 20 && flood.len() > 100, "{:?}", pipeline.accounting);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations::during(|| Box::new(1)).1, 1);
}
