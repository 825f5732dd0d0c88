//! From the kernel's record to the written line, without the kernel: `cargo bench -p netpol-trace --bench records`. Decoded, named,
//! judged, encoded and written to /dev/null by the agent's own pipeline, as fast as it goes. An argument: how many records.
//!
//! Target at 10,000 pods and 5,000 policies: 100,000 records of 2 kB a second of one core's time.

#[path = "../tests/verdict/allocations.rs"]
mod allocations;
#[path = "../tests/verdict/large.rs"]
mod large;
#[path = "../tests/verdict/mk.rs"]
mod mk;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use netpol_trace::books::Intake;
use netpol_trace::cluster::Cluster;
use netpol_trace::cluster::change::Change;
use netpol_trace::kernel::RawDrop;
use netpol_trace::output::Output;
use netpol_trace::packet::{Answers, Candidate, Facts, Site, TCP};
use netpol_trace::pipeline::Pipeline;
use netpol_trace::record::encode::Format;
use netpol_trace::record::{Hook, Mechanism, VerdictResult};
use netpol_trace::sink::Numbers;
use netpol_trace::sink::file::{Lines, Rotation};
use netpol_trace::verdict::{self, Connection, Options};
use netpol_trace_common::{CT_WORDS, DropEvent, HEAD_LEN, flags};

const PODS: usize = 10_000;
const RECORDS: usize = 300_000;
/// Different flows, one after the other.
const FLOWS: usize = 20_000;

fn main() {
    let records = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(RECORDS);
    let cluster = Cluster::live();
    // Long enough ago that no policy counts as just changed.
    let at = Timestamp::now() - SignedDuration::from_hours(1);
    cluster.apply(large::objects(PODS).into_iter().map(Change::Upsert).collect(), at);
    let drops = drops(&cluster);

    let folder = tempfile::tempdir().unwrap();
    let sample = folder.path().join("sample");
    run(&cluster, &drops, 1_000, &sample);
    let octets = std::fs::metadata(&sample).unwrap().len() / 1_000;

    let (took, cpu, allocations) = run(&cluster, &drops, records, Path::new("/dev/null"));
    let each = cpu.as_nanos() as f64 / records as f64;
    println!("{PODS} pods, 5,000 policies, {records} denied packets of {} flows, a line each", drops.len());
    println!("{:<52} {octets:>10}", "octets a line, mean");
    println!("{:<52} {each:>10.0}", "ns a record, all threads' processor time");
    println!("{:<52} {:>10.0}", "records a second of one core's time", 1e9 / each);
    println!("{:<52} {:>10.0}", "records a second on the clock", records as f64 / took.as_secs_f64());
    println!("{:<52} {:>10.1}", "allocations a record, up to the sink's queue", allocations as f64 / records as f64);
}

/// Time on the clock, processor time, and allocations of the pipeline's thread.
fn run(cluster: &Cluster, drops: &[RawDrop], records: usize, path: &Path) -> (Duration, Duration, u64) {
    let mut output = Output::new(Numbers::new("5f3a9c1e".into(), Some("bench".into()), Some("node-1".into())));
    output.add(Box::new(Lines::open(path, Format::Native, Rotation::default()).unwrap())).unwrap();
    let intake = Arc::new(Intake::default());
    let mut pipeline = Pipeline::new(cluster.clone(), Some("node-1".into()), false, intake, output);
    let (start, cpu) = (Instant::now(), processor_time());
    let ((), allocations) = allocations::during(|| {
        for drop in drops.iter().cycle().take(records) {
            pipeline.handle(drop.clone()).unwrap();
        }
    });
    pipeline.output.drain();
    let times = (start.elapsed(), processor_time() - cpu, allocations);
    let written = pipeline.output.ledger().written;
    assert_eq!(written, records as u64, "lines written; {:?}", pipeline.books);
    assert!(pipeline.output.finish());
    times
}

/// What the kernel would hand over for connections that policies deny.
fn drops(cluster: &Cluster) -> Vec<RawDrop> {
    let index = cluster.read();
    let denied = |connection: &Connection<'_>| {
        verdict::judge(&index, connection, &Options::default()).result == VerdictResult::Denied
    };
    let connections = large::connections(&index, PODS, 2 * FLOWS);
    connections.iter().filter(|connection| denied(connection)).take(FLOWS).zip(1024..).map(drop_of).collect()
}

fn drop_of((connection, source_port): (&Connection<'_>, u16)) -> RawDrop {
    let octets = |ip: Option<IpAddr>| match ip {
        Some(IpAddr::V4(ip)) => ip.octets(),
        _ => unreachable!("the cluster is made of IPv4 addresses"),
    };
    // A SYN.
    let mut head = [0; HEAD_LEN];
    head[..12].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
    head[12..16].copy_from_slice(&octets(connection.source.ip));
    head[16..20].copy_from_slice(&octets(connection.destination.ip));
    head[20..22].copy_from_slice(&source_port.to_be_bytes());
    head[22..24].copy_from_slice(&connection.port.unwrap_or(0).to_be_bytes());
    head[32..36].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
    let event = DropEvent {
        time: uptime(),
        location: 1,
        dst_input: 0,
        conntrack: [0; CT_WORDS],
        reason: 8,
        len: 40,
        data_offset: 64,
        tail: 104,
        network_header: 64,
        mac_header: 50,
        transport_header: 84,
        protocol: 0x0800_u16.to_be(),
        ifindex: 2,
        iif: 2,
        out_ifindex: 3,
        netns: 4_026_531_840,
        mark: 0,
        gso_segs: 0,
        gso_size: 0,
        ctinfo: 0,
        flags: flags::DEVICE | flags::DST,
        pad: [0; 6],
        device: [0; 2],
        head,
    };
    let facts = Facts {
        reason: Some("NETFILTER_DROP".into()),
        location: Some("nft_do_chain".into()),
        site: Site { mechanism: Mechanism::Nftables, candidate: Candidate::Policy, hook: Some(Hook::Forward) },
        device: Some("veth12345678".into()),
        netns: Some(4_026_531_840),
        rejected: false,
        answers: Answers { icmp: true, icmp6: true, reset: true },
    };
    RawDrop { event, facts }
}

/// CLOCK_MONOTONIC, nearly: ns.
fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
    (seconds * 1e9) as u64
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a valid timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
