//! The listener on a real socket, with readers that read and readers that do not.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::tail_server::slots::MAX_READERS_OF_USER;
use crate::agent::tail_server::*;
use crate::cluster::access_review::tests::{Server, reviewer};
use crate::metrics::Metrics;

/// For a client that reads nothing.
const MUST_READ_WITHIN: Duration = Duration::from_millis(300);
/// A history of far more than the sockets' buffers hold.
const LINES: usize = 100_000;

struct TestListener {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    server: Arc<Server>,
    history: tempfile::TempDir,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for TestListener {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A listener with a history of so many lines, and two users who may read all of it.
async fn site(history_lines: usize) -> TestListener {
    let history = tempfile::tempdir().expect("a folder");
    let line = r#"{"schema":"netpol-trace/v1","id":"a/1","run":"a","seq":1,"time":"2026-11-21T12:51:00Z","kind":"loss","stage":"sink","reason":"test","count":1}"#;
    let lines = format!("{line}\n").repeat(history_lines);
    fs::write(history.path().join("0000000000001-05db8ac4-000001.jsonl"), lines).expect("a history");
    let server = Arc::<Server>::default();
    for user in ["slow", "other"] {
        server.knows(user, user, &["staging"]);
    }
    server.allows("staging", "pods netpol-trace");
    server.allows("staging", "staging");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let metrics = Arc::<Metrics>::default();
    let router = router(history.path().to_owned(), reviewer(&server));
    let serving = tokio::spawn(http::serve(listener, router, metrics.clone(), MUST_READ_WITHIN));
    TestListener { address, metrics, server, history, serving }
}

impl TestListener {
    /// Requests all records, without reading the response.
    async fn ask(&self, token: &str, query: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        let request = format!("GET /v1/records?{query} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a request");
        stream
    }

    /// The status of an answer, when it is there.
    async fn status(stream: &mut TcpStream) -> u16 {
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("an answer");
        String::from_utf8_lossy(&head[9..]).parse().expect("a status")
    }

    fn disconnected(&self) -> u64 {
        let series = "netpol_trace_errors_total{stage=\"listen\",kind=\"client_does_not_read\"} ";
        let page = self.metrics.page();
        page.lines().find_map(|line| line.strip_prefix(series)?.parse().ok()).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_is_ended_and_frees_its_slot() {
    let site = site(LINES).await;
    let mut stalled = Vec::new();
    for _ in 0..MAX_READERS_OF_USER {
        let mut stream = site.ask("slow", "follow=true").await;
        assert_eq!(TestListener::status(&mut stream).await, 200);
        stalled.push(stream);
    }
    // This user has all of its slots. Others are served meanwhile.
    let mut refused = site.ask("slow", "").await;
    assert_eq!(TestListener::status(&mut refused).await, 503);
    let mut other = site.ask("other", "").await;
    assert_eq!(TestListener::status(&mut other).await, 200);
    let mut whole = Vec::new();
    let end = b"0\r\n\r\n";
    while !whole.ends_with(end) {
        assert!(other.read_buf(&mut whole).await.expect("the history") > 0, "cut off");
    }
    assert!(whole.split(|b| *b == b'\n').filter(|line| line.starts_with(b"{")).count() >= LINES);

    let began = Instant::now();
    while site.disconnected() < MAX_READERS_OF_USER as u64 {
        assert!(began.elapsed() < Duration::from_secs(30), "{} of them", site.disconnected());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A slot is free again shortly after its connection has ended.
    loop {
        let mut again = site.ask("slow", "").await;
        match TestListener::status(&mut again).await {
            200 => break,
            status => assert_eq!(status, 503),
        }
        assert!(began.elapsed() < Duration::from_secs(30), "no slot is given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(site.disconnected(), MAX_READERS_OF_USER as u64, "a client that reads is not disconnected");
}

/// Idle connections must not use up all slots: the kubelet's probes come over a listener like this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_block_others() {
    let site = site(1).await;
    let mut reader = site.ask("slow", "follow=true").await;
    assert_eq!(TestListener::status(&mut reader).await, 200);
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(site.address).await.expect("a connection");
        // Half a request is none.
        stream.write_all(b"GET /v1/records HTTP/1.1\r\n").await.expect("half a request");
        idle.push(stream);
    }
    // Far below the 10 s after which a request's head has to be there.
    let answer = async { TestListener::status(&mut site.ask("other", "").await).await };
    let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
    assert_eq!(answer.expect("an answer in time"), 200);
    // A connection with a request is not closed in favour of others.
    let mut lines = Vec::new();
    while !lines.contains(&b'{') {
        assert!(reader.read_buf(&mut lines).await.expect("the history") > 0, "closed");
    }
    let page = site.metrics.page();
    assert!(page.contains("netpol_trace_errors_total{stage=\"listen\",kind=\"client_asks_nothing\"} "), "{page}");
}

#[tokio::test]
async fn an_invalid_namespace_is_refused_without_a_review() {
    let site = site(1).await;
    for namespaces in ["Staging", "a%20b", "..", "*", "staging,*", &"a".repeat(64)] {
        let mut stream = site.ask("other", &format!("namespace={namespaces}")).await;
        assert_eq!(TestListener::status(&mut stream).await, 400, "{namespaces}");
    }
    let mut stream = site.ask("other", "namespace=staging").await;
    assert_eq!(TestListener::status(&mut stream).await, 200);
}

/// If it is not known whether a reader may see a record, the response breaks off, and `tail` reports that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_cannot_be_completed_breaks_off() {
    let site = site(1).await;
    let log = include_str!("../../../tests/tail/log.jsonl");
    let of_both =
        |line: &&str| line.contains("\"namespace\":\"qa-test\"") && line.contains("\"namespace\":\"staging\"");
    let drop = log.lines().find(of_both).expect("a drop between the two");
    let mut stream = site.ask("slow", "namespace=staging&follow=true").await;
    assert_eq!(TestListener::status(&mut stream).await, 200);
    site.server.away.store(true, Ordering::Relaxed);
    fs::write(site.history.path().join("0000000000002-05db8ac4-000002.jsonl"), format!("{drop}\n")).expect("a record");
    let mut whole = Vec::new();
    // A broken answer has no last chunk.
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut whole)).await;
    assert!(read.is_ok(), "goes on without the record");
    assert!(!whole.ends_with(b"0\r\n\r\n") && !String::from_utf8_lossy(&whole).contains("\"drop\""));
}
