//! `tail` on a long log: `cargo bench -p netpol-trace --bench tail`.
//!
//! Targets with 1 million records of 2 kB: filtering at 400 MB/s, `--summary` at 100,000 records a second, memory bounded.
//! Rates are per second of processor time (user and system) of one thread. Other work on the machine makes `seconds` longer but does not
//! change the rates.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const RECORDS: usize = 1_000_000;
const LENGTH: usize = 2000;

fn main() {
    let dir = tempfile::tempdir().expect("a folder for the log");
    let log = dir.path().join("log.jsonl");
    let length = write(&log).expect("the log");
    println!(
        "{RECORDS} records of {} bytes, one thread; rates by processor time, highest resident memory, both by wait4(2)",
        length / RECORDS as u64
    );
    println!();
    println!("{:<44} {:>8} {:>8} {:>10} {:>12} {:>8}", "tail", "seconds", "cpu s", "MB/s", "records/s", "MiB");
    for arguments in [
        &["--pod", "ns-77/web-77", "-o", "json"][..],
        &["--pod", "ns-77/web-77"],
        &["-n", "ns-7", "-o", "json"],
        &["--cause", "disagrees"],
        &["--summary"],
        &["-o", "json"],
        &["-A"],
    ] {
        measure(&log, arguments, length);
    }
}

fn measure(log: &Path, arguments: &[&str], length: u64) {
    let started = Instant::now();
    // `wait4` below waits for it and returns its resource usage.
    #[allow(clippy::zombie_processes)]
    let child = Command::new(env!("CARGO_BIN_EXE_netpol-trace"))
        .arg("tail")
        .arg(log)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .expect("netpol-trace");
    // SAFETY: our own child, and valid memory for both results.
    let (status, used) = unsafe {
        let (mut status, mut used) = (0, std::mem::zeroed::<libc::rusage>());
        libc::wait4(i32::try_from(child.id()).expect("a process id"), &raw mut status, 0, &raw mut used);
        (status, used)
    };
    assert_eq!(status, 0, "tail {arguments:?} failed");
    let seconds = started.elapsed().as_secs_f64();
    let cpu: f64 = [used.ru_utime, used.ru_stime].iter().map(|t| t.tv_sec as f64 + t.tv_usec as f64 / 1e6).sum();
    println!(
        "{:<44} {seconds:>8.2} {cpu:>8.2} {:>10.0} {:>12.0} {:>8}",
        arguments.join(" "),
        length as f64 / 1e6 / cpu,
        RECORDS as f64 / cpu,
        used.ru_maxrss / 1024
    );
}

/// Drops of 10,000 pods in 100 namespaces, as the agent writes them.
fn write(path: &Path) -> std::io::Result<u64> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut length = 0;
    for n in 0..RECORDS {
        let (ns, pod) = (n % 100, n % 10_000);
        let (second, nano) = (n / 1000 % 60, n % 1000 * 1_000_000);
        let mut line = format!(
            "{{\"schema\":\"netpol-trace/v1\",\"id\":\"5a5a0001/{n}\",\"run\":\"5a5a0001\",\"seq\":{n},\"time\":\"2026-11-21T04:{:02}:{second:02}.{nano:09}Z\",\
             \"node\":\"worker-7\",\"kind\":\"drop\",\"count\":1,\"bytes\":60,\"cause\":\"policy\",\"direction\":\"ingress\",\"action\":\"drop\",\
             \"source\":{{\"kind\":\"pod\",\"ip\":\"10.7.{}.{}\",\"port\":{},\"pod\":{{\"namespace\":\"ns-{ns}\",\"name\":\"web-{pod}\",\"uid\":\"8ec2a3b3-ee11-59fd-bb13-f0d6b1e7460c\",\"labels\":{{\"app\":\"web\",\"pod-template-hash\":\"7d9c8bf9d\"}},\"owner\":{{\"kind\":\"Deployment\",\"name\":\"web\"}},\"node\":\"worker-7\"}}}},\
             \"destination\":{{\"kind\":\"pod\",\"ip\":\"10.8.3.2\",\"port\":3306,\"pod\":{{\"namespace\":\"ns-{}\",\"name\":\"db-0\",\"uid\":\"6f813231-408a-534b-ac2a-2682a638f5df\",\"labels\":{{\"app\":\"db\",\"statefulset.kubernetes.io/pod-name\":\"db-0\"}},\"owner\":{{\"kind\":\"StatefulSet\",\"name\":\"db\"}},\"node\":\"worker-7\"}},\"service\":{{\"namespace\":\"ns-1\",\"name\":\"db-svc\",\"port\":3306}},\"original\":{{\"ip\":\"10.99.57.125\",\"port\":3306}}}},\
             \"network\":{{\"transport\":\"tcp\",\"family\":\"ipv4\",\"tcp_flags\":[\"syn\"],\"length\":60}},\"kernel\":{{\"reason\":\"NETFILTER_DROP\",\"location\":\"nft_do_chain\",\"hook\":\"forward\",\"mechanism\":\"nftables\",\"device\":\"veth4\",\"netns\":4026532668}},\
             \"verdict\":{{\"result\":\"denied\",\"basis\":\"networkpolicy_v1\",\"egress\":{{\"result\":\"allowed\",\"isolated_by\":[]}},\"ingress\":{{\"result\":\"denied\",\"isolated_by\":[{{\"namespace\":\"ns-1\",\"name\":\"db-np\",\"uid\":\"72eb5833-2bfb-509f-bc0c-5c3f2edd70c7\",\"generation\":1,\"changed_ago_seconds\":4077357}}],\"nearest\":{{\"policy\":\"ns-1/db-np\",\"rule\":\"ingress[0]\",\"misses\":[{{\"field\":\"ingress[0].from[0].podSelector\",\"want\":\"app=api\",\"have\":\"app=web\"}}]}}}}}},\
             \"hint\":{{\"code\":\"peer-label\",\"message\":\"Nearest is ns-1/db-np: ingress[0].from[0].podSelector app=api | pod has app=web. ",
            n / 60_000,
            pod / 250,
            pod % 250,
            1024 + n % 60_000,
            ns / 2,
        );
        while line.len() < LENGTH - 40 {
            line.push_str("To allow it, add to ingress[0].from an item. ");
        }
        line.truncate(LENGTH - 30);
        line.push_str("\"},\"enrichment\":\"complete\"}\n");
        length += line.len() as u64;
        out.write_all(line.as_bytes())?;
    }
    out.flush()?;
    Ok(length)
}
