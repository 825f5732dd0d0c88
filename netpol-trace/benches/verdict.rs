//! Cost of a verdict, by size of the cluster: `cargo bench -p netpol-trace --bench verdict`.
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
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use netpol_trace::cluster::Object;
use netpol_trace::cluster::index::AddressOwner;
use netpol_trace::cluster::{Change, Index, Kind};
use netpol_trace::model::cluster::Protocol;
use netpol_trace::policy;
use netpol_trace::policy::{CniOptions, Connection, PolicyEndpoint, PolicyIdentity, PolicyResult, Transport};

/// How long one figure is measured.
const MEASURED: Duration = Duration::from_millis(800);

fn main() {
    println!(
        "One core; times are means. A verdict evaluates both directions. `by addr` looks up both endpoints first,"
    );
    println!("`record` renders the record's verdict; `denied` those with the nearest rule and its misses.");
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
    while_pods_change();
    allocations_by_path();
}

/// Evaluates drops as of 100 ms ago while 10,000 pods change in a minute, so each evaluation needs the index's history.
fn while_pods_change() {
    const PODS: usize = 10_000;
    let time = |millis: usize| Timestamp::UNIX_EPOCH + SignedDuration::from_millis(1_000_000 + millis as i64);
    println!();
    println!("verdicts a second as of a moment, {PODS} pods: {:>11} {:>11}", "no changes", "10,000/min");
    let mut index = Index::default();
    let objects = large::objects(PODS).into_iter().map(Change::Upsert);
    index.apply(objects.chain([Change::Listed(Kind::Pod)]).collect(), time(0));
    let addresses: Vec<[IpAddr; 2]> = large::connections(&index, PODS, 20_000)
        .iter()
        .filter_map(|c| Some([c.source.ip?, c.destination.ip?]))
        .collect();
    let options = CniOptions::default();
    let mut rates = Vec::new();
    for changes in [0, PODS] {
        for n in 0..changes {
            let mut pod = large::pod(n * 7 % PODS);
            pod.labels = pod
                .labels
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .chain([("version".into(), "2".into())])
                .collect();
            index.apply(vec![Change::Upsert(Object::Pod(pod))], time(n * 6));
        }
        let then = time(changes * 6) - SignedDuration::from_millis(100);
        rates.push(per_second(&addresses, |ends| {
            let moment = index.at(then, ends);
            let end = |ip| match moment.owner_of(ip) {
                AddressOwner::Pod(view) => PolicyEndpoint { ip: Some(ip), identity: PolicyIdentity::Pod(view) },
                _ => PolicyEndpoint { ip: Some(ip), identity: PolicyIdentity::External },
            };
            let [source, destination] = ends.map(end);
            for identity in [source.identity, destination.identity] {
                let PolicyIdentity::Pod(view) = identity else { continue };
                black_box(index.changed_near(view.pod, then, SignedDuration::from_secs(10)));
            }
            let transport = Transport::Named(Protocol::Tcp);
            let connection = Connection { source, destination, transport, port: Some(8080), at: Some(then) };
            black_box(policy::evaluate(&index, &connection, &options));
        }));
    }
    println!("{:>56.0} {:>11.0}", rates[0], rates[1]);
}

fn speeds(index: &Index, pods: usize) -> [f64; 5] {
    let options = &CniOptions::default();
    let connections = &large::connections(index, pods, 20_000);
    let denied = |c: &&Connection<'_>| matches!(policy::evaluate(index, c, options).result(), PolicyResult::Denied);
    let (denied, allowed): (Vec<_>, Vec<_>) = connections.iter().partition(denied);
    [
        per_second(connections, |c| _ = black_box(policy::evaluate(index, c, options))),
        per_second(connections, |c| _ = black_box(policy::evaluate(index, &by_address(index, c), options))),
        per_second(connections, |c| _ = black_box(policy::verdict_of(index, c, options))),
        per_second(&denied, |c| _ = black_box(policy::verdict_of(index, c, options))),
        per_second(&allowed, |c| _ = black_box(policy::verdict_of(index, c, options))),
    ]
}

fn by_address<'a>(index: &'a Index, connection: &Connection<'a>) -> Connection<'a> {
    let look_up = |end: &PolicyEndpoint<'a>| match end.ip.map(|ip| index.owner_of(ip)) {
        Some(AddressOwner::Pod(view)) => PolicyEndpoint { ip: end.ip, identity: PolicyIdentity::Pod(view) },
        _ => PolicyEndpoint { ip: end.ip, identity: PolicyIdentity::External },
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

/// Microseconds to apply one changed policy and one changed pod.
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
    let options = CniOptions::default();
    let connections = large::connections(&index, 10_000, 20_000);
    let (_, bare) =
        allocations::during(|| connections.iter().for_each(|c| _ = black_box(policy::evaluate(&index, c, &options))));
    let (_, owned) =
        allocations::during(|| connections.iter().for_each(|c| _ = black_box(policy::verdict_of(&index, c, &options))));
    println!();
    println!(
        "heap allocations a verdict: {:.2} bare, {:.2} as a record",
        bare as f64 / 20_000.0,
        owned as f64 / 20_000.0
    );
}
