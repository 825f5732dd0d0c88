//! What a verdict costs, by size of the cluster: `cargo bench -p netpol-trace --bench verdict`.
//!
//! Targets at 10,000 pods, 500 namespaces and 5,000 policies: index built in under 1 s, 500,000 verdicts a second on one
//! core without the nearest rule and 100,000 with it, one change in under 1 ms; flat from 1,000 to 100,000 pods.

#[path = "../tests/verdict/allocations.rs"]
mod allocations;
#[path = "../tests/verdict/large.rs"]
mod large;
#[path = "../tests/verdict/mk.rs"]
mod mk;

use std::hint::black_box;
use std::time::{Duration, Instant};

use netpol_trace::cluster::Index;
use netpol_trace::cluster::index::Owner;
use netpol_trace::cluster::model::Object;
use netpol_trace::verdict::{self, Connection, End, Finding, Options, Who};

/// How long one figure is measured.
const MEASURED: Duration = Duration::from_millis(800);

fn main() {
    println!("One core; times are means. A verdict judges both directions. `by address` looks both ends up first,");
    println!("`record` makes the record's verdict; `denied` with the nearest rule and its misses in words.");
    println!();
    println!(
        "{:>8} {:>9} {:>10} {:>11} {:>11} {:>11} {:>11} {:>11} {:>10} {:>10}",
        "pods",
        "policies",
        "index ms",
        "verdict/s",
        "by addr/s",
        "record/s",
        "denied/s",
        "allowed/s",
        "policy µs",
        "pod µs"
    );
    for pods in [1_000, 10_000, 100_000] {
        let objects = large::objects(pods);
        let policies = objects.iter().filter(|o| matches!(o, Object::Policy(_))).count();
        let started = Instant::now();
        let mut index = Index::from_objects(objects);
        let built = started.elapsed();
        let speeds = speeds(&index, pods);
        let (policy, pod) = changes(&mut index, pods);
        println!(
            "{pods:>8} {policies:>9} {:>10.1} {:>11.0} {:>11.0} {:>11.0} {:>11.0} {:>11.0} {:>10.1} {:>10.1}",
            built.as_secs_f64() * 1e3,
            speeds[0],
            speeds[1],
            speeds[2],
            speeds[3],
            speeds[4],
            policy,
            pod
        );
    }
    allocations_by_path();
}

fn speeds(index: &Index, pods: usize) -> [f64; 5] {
    let options = &Options::default();
    let connections = &large::connections(index, pods, 20_000);
    let denied = |c: &&Connection<'_>| matches!(verdict::evaluate(index, c, options).finding(), Finding::Denied);
    let (denied, allowed): (Vec<_>, Vec<_>) = connections.iter().partition(denied);
    [
        per_second(connections, |c| _ = black_box(verdict::evaluate(index, c, options))),
        per_second(connections, |c| _ = black_box(verdict::evaluate(index, &by_address(index, c), options))),
        per_second(connections, |c| _ = black_box(verdict::judge(index, c, options))),
        per_second(&denied, |c| _ = black_box(verdict::judge(index, c, options))),
        per_second(&allowed, |c| _ = black_box(verdict::judge(index, c, options))),
    ]
}

fn by_address<'a>(index: &'a Index, connection: &Connection<'a>) -> Connection<'a> {
    let look_up = |end: &End<'a>| match end.ip.map(|ip| index.owner_of(ip)) {
        Some(Owner::Pod(view)) => End { ip: end.ip, who: Who::Pod(view) },
        _ => End { ip: end.ip, who: Who::External },
    };
    Connection { source: look_up(&connection.source), destination: look_up(&connection.destination), ..*connection }
}

fn per_second<T>(items: &[T], mut work: impl FnMut(&T)) -> f64 {
    let started = Instant::now();
    let mut done = 0_u32;
    while started.elapsed() < MEASURED {
        items.iter().for_each(&mut work);
        done += u32::try_from(items.len()).unwrap_or(u32::MAX);
    }
    f64::from(done) / started.elapsed().as_secs_f64()
}

/// Microseconds to take in one changed policy and one changed pod.
fn changes(index: &mut Index, pods: usize) -> (f64, f64) {
    let namespaces = pods / large::PODS_A_NAMESPACE;
    let changed: Vec<_> =
        (0..1000).flat_map(|n| large::policies(&format!("team-{}", n % namespaces)).into_iter().take(1)).collect();
    let started = Instant::now();
    let many = changed.len();
    changed.into_iter().for_each(|policy| index.upsert(Object::Policy(policy)));
    let policy = started.elapsed().as_secs_f64() * 1e6 / many as f64;
    let changed: Vec<_> = (0..1000).map(|n| large::pod(n * 7 % pods)).collect();
    let started = Instant::now();
    changed.into_iter().for_each(|pod| index.upsert(Object::Pod(pod)));
    (policy, started.elapsed().as_secs_f64() * 1e6 / 1000.0)
}

fn allocations_by_path() {
    let index = Index::from_objects(large::objects(10_000));
    let options = Options::default();
    let connections = large::connections(&index, 10_000, 20_000);
    let (_, bare) =
        allocations::during(|| connections.iter().for_each(|c| _ = black_box(verdict::evaluate(&index, c, &options))));
    let (_, owned) =
        allocations::during(|| connections.iter().for_each(|c| _ = black_box(verdict::judge(&index, c, &options))));
    println!();
    println!(
        "heap allocations a verdict: {:.2} bare, {:.2} as a record",
        bare as f64 / 20_000.0,
        owned as f64 / 20_000.0
    );
}
