//! The process of the DaemonSet: attaches the hooks, runs the pipeline, serves /metrics and `tail`, and detaches at the end.
//!
//! Besides the async runtime there are two threads, with a bounded queue between them (`channel`). The reader drains the kernel's ring
//! buffers and never waits for anything else. The worker runs the pipeline.

mod channel;
mod losses;
pub mod previous;
pub mod reader;
pub mod source;
mod start;
mod status;
pub mod tail_server;
pub mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use jiff::Timestamp;
use previous::StateFile;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::Cluster;
use crate::cluster::access_review::Reviewer;
use crate::cluster::api::Access;
use crate::config::Live;
use crate::http::{self, MetricsGuard};
use crate::inventory::{self, InventoryWatcher};
use crate::kernel;
use crate::kernel::tc::TcView;
use crate::memory;
use crate::metrics::Metrics;
use crate::pipeline::Pipeline;
use crate::pipeline::accounting::Intake;
use crate::pipeline::aggregate::RecordBudget;
use crate::pipeline::connections::Flows;
use crate::record::format::Format;
use crate::sink::fan_out::FanOut;
use crate::sink::queue::OnWritten;
use crate::sink::spec::OutputSpec;
use crate::storage::Readers;

/// Default length of the aggregation window.
pub const WINDOW: Duration = Duration::from_secs(10);

/// A hook that `--hooks` can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HookName {
    /// Drops
    #[value(name = "kfree_skb")]
    KfreeSkb,
    /// DNS names, spoofed sources, unanswered connections
    Tc,
}

/// The history: records that are kept on disk.
#[derive(Debug, Clone)]
pub struct HistoryConfig {
    pub folder: PathBuf,
    pub readers: Readers,
    /// Largest size in bytes.
    pub bytes: u64,
}

/// The configuration of an agent.
#[derive(Debug)]
pub struct AgentConfig {
    pub source: source::SourceConfig,
    /// Access to the API server for access reviews and Events.
    pub access: Access,
    pub node: Option<String>,
    pub cluster: Option<String>,
    pub all_drops: bool,
    /// Outputs; an empty list means stdout.
    pub outputs: Vec<OutputSpec>,
    /// Format of the outputs that name none.
    pub format: Format,
    /// Address of the listener for /metrics and the probes.
    pub listen: Option<SocketAddr>,
    /// Who may read /metrics; `None` means everybody.
    pub metrics_guard: Option<MetricsGuard>,
    pub history: Option<HistoryConfig>,
    /// Address of the `tail` listener, and the access reviews for its callers.
    pub tail: Option<(SocketAddr, Reviewer)>,
    pub duration: Option<Duration>,
    pub ring_bytes: u32,
    /// How long the kernel counts repeated packets before the agent reports them; zero: each packet has a record.
    pub aggregation_window: Duration,
    /// Limit of drop records per second; 0 means no limit.
    pub max_records_per_second: u32,
    /// Counts, unread events and the hook stay in the kernel when the agent ends.
    pub survive_restart: bool,
    pub pin_folder: PathBuf,
    /// `None`: the hooks that this kernel supports without anything left behind by a killed agent.
    pub hooks: Option<Vec<HookName>>,
    /// Folder of the state file, from which the next run learns the end of this one.
    pub state_dir: Option<PathBuf>,
}

/// Runs until a signal, the end of the configured duration, or the end of the reader of the primary sink.
pub async fn run(mut config: AgentConfig, file: Live) -> anyhow::Result<()> {
    // First of all: a signal during the start must end the agent as cleanly as a later one.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (cluster, source) = source::open(&config.source).await?;
    let run = start::run_id()?;
    let output = start::open_output(&config, &run)?;
    let metrics = output.metrics().clone();
    let listeners = HttpListeners::bind(&mut config, &metrics).await?;
    let state = config.state_dir.as_deref().map(|dir| StateFile::open(dir, &run)).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    let duration = config.duration;
    let mut threads = spawn_threads(config, &cluster, source.lookups(), output, &file, state.as_ref(), &stop)?;

    let duration = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let settling = memory::keep_small(async {
        source::wait_for_sync(&cluster).await;
        drop(threads.start_worker.take());
    });
    tokio::select! {
        () = settling => {}
        _ = interrupt.recv() => tracing::debug!("SIGINT"),
        _ = terminate.recv() => tracing::debug!("SIGTERM"),
        () = duration => {}
        _ = &mut threads.worker_ended => {}
        () = source.follow(cluster.clone()) => {}
        () = serve(listeners.metrics, &metrics) => {}
        () = serve(listeners.tail, &metrics) => {}
        () = file.follow() => {}
        () = keep(state.as_ref()) => {}
    }
    if let Some(state) = &state {
        state.end();
    }

    stop.store(true, Ordering::Release);
    // A second signal must end even an agent whose output is blocked.
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        #[expect(clippy::disallowed_methods, reason = "a second signal ends the process at once")]
        std::process::exit(130);
    });
    let Threads { reader, worker, .. } = threads;
    tokio::task::spawn_blocking(move || {
        if reader.join().is_err() {
            bail!("the reader thread panicked");
        }
        worker.join().map_err(|_| anyhow!("the worker thread panicked"))?
    })
    .await?
}

/// A bound listener and what it serves.
type Served = Option<(TcpListener, axum::Router)>;

struct HttpListeners {
    metrics: Served,
    tail: Served,
}

impl HttpListeners {
    /// Binds before any hook is attached, so that an address that is in use ends the start early.
    async fn bind(config: &mut AgentConfig, metrics: &Arc<Metrics>) -> anyhow::Result<HttpListeners> {
        let of_metrics = match config.listen {
            Some(address) => {
                let router = http::router(metrics.clone(), config.metrics_guard.take());
                Some((http::bind("--listen", address).await?, router))
            }
            None => None,
        };
        let tail = match (config.tail.take(), &config.history) {
            (Some((address, reviewer)), Some(history)) => {
                let router = tail_server::router(history.folder.clone(), reviewer);
                Some((http::bind("--tail-listen", address).await?, router))
            }
            _ => None,
        };
        Ok(HttpListeners { metrics: of_metrics, tail })
    }
}

async fn serve(served: Served, metrics: &Arc<Metrics>) {
    match served {
        Some((listener, router)) => http::serve(listener, router, metrics.clone(), http::WRITE_TIMEOUT).await,
        None => std::future::pending().await,
    }
}

async fn keep(state: Option<&StateFile>) {
    match state {
        Some(state) => state.keep().await,
        None => std::future::pending().await,
    }
}

struct Threads {
    reader: JoinHandle<()>,
    worker: JoinHandle<anyhow::Result<()>>,
    /// Dropped when the sources are in sync: the worker waits for it, so that the first status shows them and the first drops get names.
    start_worker: Option<std::sync::mpsc::Sender<()>>,
    /// Resolves when the worker ends by itself: the reader of the primary sink has gone, or the worker panicked.
    worker_ended: tokio::sync::oneshot::Receiver<()>,
}

/// Attaches the hooks and starts the threads.
fn spawn_threads(
    config: AgentConfig,
    cluster: &Cluster,
    lookups: Option<crate::cluster::api::Lookups>,
    output: FanOut,
    file: &Live,
    state: Option<&StateFile>,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Threads> {
    let start::Hooks { drops, tc, states } = start::open_hooks(&config)?;
    if let Some(built_in) = drops.as_ref().and_then(|drops| drops.names.nft_is_built_in()) {
        inventory::nft_is_built_in(built_in);
    }
    let previous = state.and_then(|state| state.before(Timestamp::now()));
    let inherited = drops.as_ref().map(|drops| drops.attached.inherited()).unwrap_or_default();
    let (previous_run, gap) = previous.map(|previous| (previous.run, previous.gap)).unzip();
    // If the hook stayed attached between the two runs, there was no time without hooks.
    let gap = gap.flatten().filter(|_| !inherited.hook);
    let handover = drops.as_ref().map(|drops| drops.attached.handover().clone());
    if let Some(handover) = handover.clone() {
        let written = move |packets| {
            handover.written().fetch_add(packets, Ordering::AcqRel);
        };
        output.on_written(OnWritten(Box::new(written)));
    }
    let counters = drops.as_ref().map(|drops| drops.counters.clone());

    let intake = Arc::new(Intake::default());
    let (to_worker, from_reader) = channel::channel();
    let mut pipeline = Pipeline::new(cluster.clone(), config.node, config.all_drops, intake.clone(), output)
        .with_inventory(InventoryWatcher::start(kernel::programs::linked))
        .with_config(file.changes());
    pipeline.lookups = lookups;
    if config.max_records_per_second > 0 {
        pipeline.budget = Some(RecordBudget::new(config.max_records_per_second, Instant::now()));
    }
    // Drops above the record budget are aggregated even if the kernel does not aggregate.
    let window = if config.aggregation_window.is_zero() { WINDOW } else { config.aggregation_window };
    let (tc_input, tc_counters) = match tc {
        Some(kernel::tc::TcHook { attacher, ring, flows, counters }) => {
            let view = TcView { flows, interfaces: attacher.interfaces() };
            pipeline.flows = Some(Flows::new(view, drops.is_some()));
            let stop = stop.clone();
            let attacher = std::thread::Builder::new().name("interfaces".into()).spawn(move || attacher.run(&stop))?;
            (Some(reader::TcInput { ring, attacher }), Some(counters))
        }
        None => (None, None),
    };
    let (ended, worker_ended) = tokio::sync::oneshot::channel();
    let (start_worker, sources_settled) = std::sync::mpsc::channel::<()>();
    let worker = std::thread::Builder::new().name("worker".into()).spawn(move || {
        let _ = sources_settled.recv();
        let setup = worker::Setup {
            counters: counters.as_deref(),
            tc_counters,
            start: status::StartState { hooks: states, previous_run },
            gap,
            ring_size: u64::from(config.ring_bytes),
            window,
            handover,
            inherited,
        };
        let result = worker::run(pipeline, &from_reader, setup);
        let _ = ended.send(());
        result
    })?;
    let stop = stop.clone();
    let reader = std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || reader::run(drops, tc_input, &intake, &stop, &to_worker))?;
    Ok(Threads { reader, worker, start_worker: Some(start_worker), worker_ended })
}
