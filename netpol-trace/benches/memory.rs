//! Memory of the index of a large cluster, filled as a live source fills it: `cargo bench -p netpol-trace --bench memory`.
//!
//! The figures are the same in every build profile: `cargo test -p netpol-trace --bench memory` prints them too.

#[expect(dead_code, reason = "only its objects are measured")]
#[path = "../tests/verdict/large.rs"]
mod large;
#[path = "../tests/verdict/mk.rs"]
mod mk;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use netpol_trace::cluster::Object;
use netpol_trace::cluster::{Change, Cluster, Kind};
use netpol_trace::model::cluster::{Pod, PodOwner};

/// Objects in a page of a list.
const PAGE: usize = 500;

/// Bytes in use, and their maximum.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct CountingAllocator;

// SAFETY: every call is passed to the system's allocator unchanged; the counters are atomics, which never allocate.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() {
    println!("Heap bytes in use, without the allocator's own; each pod has the fields of a Deployment's pod.");
    println!(
        "{:>8} {:>9} {:>11} {:>11} {:>13} {:>13} {:>9}",
        "pods", "policies", "index MiB", "bytes/pod", "at list MiB", "history MiB", "RSS MiB"
    );
    for pods in [1_000, 10_000, 100_000] {
        measure(pods);
    }
}

fn measure(pods: usize) {
    let base = LIVE.load(Ordering::Relaxed);
    let since_base = |bytes: usize| bytes.saturating_sub(base) as f64 / 1024.0 / 1024.0;
    let cluster = Cluster::live();
    let policies = fill(&cluster, pods, Timestamp::UNIX_EPOCH);
    let filled = LIVE.load(Ordering::Relaxed);
    // The same list again, as after a lost watch: nothing changes, and only one page of it is in memory twice.
    PEAK.store(filled, Ordering::Relaxed);
    fill(&cluster, pods, Timestamp::UNIX_EPOCH);
    let relist = PEAK.load(Ordering::Relaxed);
    let listed = LIVE.load(Ordering::Relaxed);
    for round in 0..3 {
        let changes = (0..pods.min(5_000)).map(|n| {
            let pod = pod(n);
            Change::Upsert(Object::Pod(Pod { uid: Some(format!("{round}-{}", pod.name).into()), ..pod }))
        });
        cluster.apply(changes.collect(), Timestamp::UNIX_EPOCH);
    }
    let history = LIVE.load(Ordering::Relaxed).saturating_sub(listed) as f64 / 1024.0 / 1024.0;
    println!(
        "{pods:>8} {policies:>9} {:>11.1} {:>11.0} {:>13.1} {history:>13.1} {:>9}",
        since_base(filled),
        since_base(filled) * 1024.0 * 1024.0 / pods as f64,
        since_base(relist),
        resident().map_or_else(|| "?".to_owned(), |mib| format!("{mib:.0}"))
    );
}

/// Applies lists of all objects as a source does, pods one page at a time. Returns the number of policies.
fn fill(cluster: &Cluster, pods: usize, at: Timestamp) -> usize {
    let namespaces = 0..pods.div_ceil(large::PODS_A_NAMESPACE);
    let all = namespaces.clone().map(large::namespace).collect();
    cluster.apply(vec![Change::Replace(Kind::Namespace.into(), all)], at);
    let all: Vec<Object> = namespaces.flat_map(|n| large::policies(&format!("team-{n}"))).map(Object::Policy).collect();
    let policies = all.len();
    cluster.apply(vec![Change::Replace(Kind::Policy.into(), all)], at);
    for page in (0..pods).step_by(PAGE) {
        let page = (page..pods.min(page + PAGE)).map(|n| Change::Upsert(Object::Pod(pod(n))));
        cluster.apply(page.collect(), at);
    }
    cluster.apply(vec![Change::Listed(Kind::Pod)], at);
    policies
}

/// A pod with the uid, labels, owner and node that a Deployment's pod has.
fn pod(i: usize) -> Pod {
    let pod = large::pod(i);
    let hash = format!("{:09x}", i / 4);
    let own = [("pod-template-hash".into(), hash.as_str().into())];
    Pod {
        uid: Some(format!("{i:08x}-0a56-4f7c-9d0f-5c2c0b8e5c2c").into()),
        labels: pod.labels.iter().map(|(k, v)| (k.clone(), v.clone())).chain(own).collect(),
        owner: Some(PodOwner { kind: "Deployment".into(), name: format!("app-{}", i / 4).as_str().into() }),
        node: Some(format!("worker-{}", i % 1_000).as_str().into()),
        created: Some(Timestamp::UNIX_EPOCH),
        ..pod
    }
}

/// The process's resident memory.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<f64>().ok()? / 1024.0)
}
