//! From a decoded drop to the encoded line, without the kernel: `cargo bench -p netpol-trace --bench records`. The agent's own pipeline
//! enriches and decides, and a sink's thread encodes the lines and discards them, at full speed. Argument: the number of records.
//!
//! Target at 10,000 pods and 5,000 policies: 100,000 records of 2 kB a second of one core's time.

#[path = "../tests/verdict/allocations.rs"]
mod allocations;
#[path = "../tests/verdict/drops.rs"]
mod drops;
#[path = "../tests/verdict/large.rs"]
mod large;
#[path = "../tests/verdict/mk.rs"]
mod mk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use netpol_trace::cluster::change::Change;
use netpol_trace::cluster::{Cluster, SourceStatus};
use netpol_trace::kernel::KernelDrop;
use netpol_trace::pipeline::Pipeline;
use netpol_trace::pipeline::accounting::Intake;
use netpol_trace::record::format::Format;
use netpol_trace::record::{Record, format};
use netpol_trace::sink::fan_out::FanOut;
use netpol_trace::sink::file::{FileSink, Rotation};
use netpol_trace::sink::queue::Patience;
use netpol_trace::sink::{Delivery, RecordIds, Sink};
use netpol_trace::storage::Readers;

const PODS: usize = 10_000;
const RECORDS: usize = 300_000;
/// Different connections, one after the other. The first number is larger than the verdict cache, so every packet's connection is new to it.
const CONNECTIONS: [usize; 2] = [20_000, 1_000];

fn main() {
    let records = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(RECORDS);
    let cluster = Cluster::live();
    // Long enough ago that no policy counts as just changed.
    let at = Timestamp::now() - SignedDuration::from_hours(1);
    cluster.apply(large::objects(PODS).into_iter().map(Change::Upsert).collect(), at);
    cluster.set_source(SourceStatus { synced: true, ..SourceStatus::expected("pods") });
    for connections in CONNECTIONS {
        case(&cluster, &drops::denied(&cluster, PODS, connections), records);
    }
}

fn case(cluster: &Cluster, drops: &[KernelDrop], records: usize) {
    let folder = tempfile::tempdir().unwrap();
    let sample = folder.path().join("sample");
    let file = FileSink::open(&sample, Format::Native, Rotation::default(), Readers::default()).unwrap();
    run(cluster, drops, 1_000, Box::new(file));
    let bytes = std::fs::metadata(&sample).unwrap().len() / 1_000;

    let (took, cpu, allocations) = run(cluster, drops, records, Box::new(DiscardSink::default()));
    let each = cpu.as_nanos() as f64 / records as f64;
    println!("{PODS} pods, 5,000 policies, {records} denied packets of {} connections, a line each", drops.len());
    println!("{:<52} {bytes:>10}", "bytes a line, mean");
    println!("{:<52} {each:>10.0}", "ns a record, all threads' processor time");
    println!("{:<52} {:>10.0}", "records a second of one core's time", 1e9 / each);
    println!("{:<52} {:>10.0}", "records a second on the clock", records as f64 / took.as_secs_f64());
    println!("{:<52} {:>10.1}", "allocations a record, up to the sink's queue", allocations as f64 / records as f64);
}

/// Time on the clock, processor time, and allocations of the pipeline's thread.
fn run(cluster: &Cluster, drops: &[KernelDrop], records: usize, sink: Box<dyn Sink>) -> (Duration, Duration, u64) {
    let mut output = FanOut::new(RecordIds::new("5f3a9c1e".into(), Some("bench".into()), Some("node-1".into())));
    output.add(sink).unwrap();
    let intake = Arc::new(Intake::default());
    let mut pipeline = Pipeline::new(cluster.clone(), Some("node-1".into()), false, intake, output);
    let (start, cpu) = (Instant::now(), processor_time());
    let ((), allocations) = allocations::during(|| {
        pipeline.handle(drops.iter().cycle().take(records).cloned()).unwrap();
    });
    pipeline.output.drain();
    let times = (start.elapsed(), processor_time() - cpu, allocations);
    let written = pipeline.output.primary().written;
    assert_eq!(written, records as u64, "lines written; {:?}", pipeline.accounting);
    assert!(pipeline.output.finish());
    times
}

/// Encodes lines as a file's sink does, and discards them.
#[derive(Default)]
struct DiscardSink {
    lines: Vec<u8>,
}

impl Sink for DiscardSink {
    fn name(&self) -> String {
        "discard".into()
    }

    fn format(&self) -> &'static str {
        Format::Native.as_str()
    }

    fn deliver(&mut self, records: &[Arc<Record>], _: Patience<'_>) -> Delivery {
        self.lines.clear();
        for record in records {
            format::line(Format::Native, record, &mut self.lines).unwrap();
        }
        Delivery::all(records)
    }
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a valid timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
