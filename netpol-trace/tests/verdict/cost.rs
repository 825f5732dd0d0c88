//! What a verdict costs, as far as a test can say it: the bench `verdict` prints the times.

use netpol_trace::cluster::Index;
use netpol_trace::verdict::{self, Finding, Options};

use crate::{allocations, large};

#[test]
fn the_allowed_path_does_not_allocate() {
    let index = Index::from_objects(large::objects(400));
    let connections = large::connections(&index, 400, 5000);
    let options = Options::default();
    let (allowed, allocations) = allocations::during(|| {
        let findings = connections.iter().map(|c| verdict::evaluate(&index, c, &options).finding());
        findings.filter(|finding| matches!(finding, Finding::Allowed(_))).count()
    });
    assert!(allowed > 100, "{allowed} of {} allowed: the test would show nothing", connections.len());
    assert!(allowed < 4900, "{allowed} of {} allowed: the policies are not in force", connections.len());
    assert_eq!(allocations, 0);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations::during(|| Box::new(1)).1, 1);
}
