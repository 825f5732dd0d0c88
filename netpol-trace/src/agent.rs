//! The DaemonSet's process: attaches, runs the pipeline, tells its state, and leaves nothing behind.
//!
//! Two threads besides the runtime: the reader empties the kernel's ring and never waits for anything else; the worker
//! runs the pipeline and writes. Between them a bounded queue: when it is full, packets are counted as lost, not waited for.

pub mod previous;
pub mod reader;
pub mod source;
pub mod tail_server;
pub mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use previous::StateFile;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::access_review::Reviewer;
use crate::cluster::api::Access;
use crate::config::Live;
use crate::http::{self, Guard};
use crate::inventory::{self, Watcher};
use crate::kernel;
use crate::kernel::tc::{TcMode, TcView};
use crate::memory;
use crate::model::HookState;
use crate::pipeline::Pipeline;
use crate::pipeline::accounting::Intake;
use crate::pipeline::aggregate::Budget;
use crate::pipeline::connections::Flows;
use crate::record::format::Format;
use crate::sink::fan_out::FanOut;
use crate::sink::history::HistorySink;
use crate::sink::queue::OnWritten;
use crate::sink::spec::OutputSpec;
use crate::sink::{RecordIds, Sink};
use crate::storage::Readers;

/// Batches between reader and worker; of at most [`reader::BATCH`] packets each.
const QUEUE: usize = 256;
/// How long drops are folded by default.
pub const WINDOW: Duration = Duration::from_secs(10);

/// A hook that `--hooks` can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HookName {
    /// Every freed packet: drops.
    #[value(name = "kfree_skb")]
    KfreeSkb,
    /// Connections at the pods' interfaces: DNS names, spoofed sources, connections that nobody answers.
    Tc,
}

/// The records that are kept on disk.
#[derive(Debug, Clone)]
pub struct HistoryConfig {
    pub folder: PathBuf,
    pub readers: Readers,
    /// At most so many bytes of them.
    pub bytes: u64,
}

/// How an agent is to run.
#[derive(Debug)]
pub struct Config {
    pub source: source::From,
    /// The API server, for what is asked of it or written to it besides.
    pub access: Access,
    pub node: Option<String>,
    pub cluster: Option<String>,
    pub all_drops: bool,
    /// Where records go; nowhere means stdout.
    pub outputs: Vec<OutputSpec>,
    /// The format of the sinks that name none.
    pub format: Format,
    /// Where /metrics and the probes are served; nowhere by default.
    pub listen: Option<SocketAddr>,
    /// Whom /metrics answers; nothing means anybody.
    pub metrics_guard: Option<Guard>,
    /// Where records are kept for `tail`.
    pub history: Option<HistoryConfig>,
    /// Where `tail` is answered, and how the API server is asked who may see what.
    pub tail: Option<(SocketAddr, Reviewer)>,
    pub duration: Option<Duration>,
    pub ring_bytes: u32,
    /// How long repeated packets are counted before they are told; zero: each has a record.
    pub aggregation_window: Duration,
    /// Records of drops a second; 0: no limit.
    pub max_records_per_second: u32,
    /// Counts, unread records and the hook stay in the kernel when the agent ends.
    pub survive_restart: bool,
    pub pin_folder: PathBuf,
    /// `None`: what this kernel has without leaving traces.
    pub hooks: Option<Vec<HookName>>,
    /// Where to remember this run for the next one.
    pub state_dir: Option<PathBuf>,
}

/// Whether a hook is among those asked for.
fn wants(hooks: Option<&[HookName]>, hook: HookName) -> bool {
    hooks.is_none_or(|hooks| hooks.contains(&hook))
}

/// Runs until a signal, the given duration, or the end of whoever reads the output.
pub async fn run(mut config: Config, file: Live) -> anyhow::Result<()> {
    // Before anything else: a signal during the start must end the agent as cleanly as one later.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (cluster, source) = source::open(&config.source).await?;
    let run = run_id()?;
    let output = open_output(&config, &run)?;
    let output_metrics = output.metrics().clone();
    let served = match config.listen {
        Some(address) => {
            let router = http::router(output_metrics.clone(), config.metrics_guard.take());
            Some((http::bind("--listen", address).await?, router))
        }
        None => None,
    };
    let tail_served = match (config.tail.take(), &config.history) {
        (Some((address, reviewer)), Some(history)) => {
            let router = crate::agent::tail_server::router(history.folder.clone(), reviewer);
            Some((http::bind("--tail-listen", address).await?, router))
        }
        _ => None,
    };
    let state = config.state_dir.as_deref().map(|dir| StateFile::open(dir, &run)).transpose()?;
    let options = kernel::KernelOptions {
        all_drops: config.all_drops,
        ring_bytes: config.ring_bytes,
        aggregate: !config.aggregation_window.is_zero(),
        survive_restart: config.survive_restart,
        pin_folder: config.pin_folder.clone(),
        ..kernel::KernelOptions::default()
    };
    let (mut hooks, mut tc_hooks) = (Vec::new(), Vec::new());
    let (drops, tc) = std::thread::scope(|scope| {
        // Both at once: half of the start is the kernel's verifier.
        let chosen = config.hooks.as_deref();
        let tc = scope.spawn({
            let hooks = &mut tc_hooks;
            move || open_tc(chosen, hooks)
        });
        let drops =
            wants(chosen, HookName::KfreeSkb).then(|| open_drops(&options, config.aggregation_window, &mut hooks));
        let tc = tc.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        anyhow::Ok((drops.transpose()?, tc?))
    })?;
    hooks.append(&mut tc_hooks);
    if let Some(built_in) = drops.as_ref().and_then(|drops| drops.names.nft_is_built_in()) {
        inventory::nft_is_built_in(built_in);
    }
    let mut previous = state.as_ref().and_then(|state| state.before(Timestamp::now()));
    let inherited = drops.as_ref().map(|drops| drops.attached.inherited()).unwrap_or_default();
    if let (Some(previous), true) = (&mut previous, inherited.hook) {
        // The hook went on without an agent: no time to declare.
        previous.gap = None;
    }
    let handover = drops.as_ref().map(|drops| drops.attached.handover().clone());
    if let Some(handover) = handover.clone() {
        let written = move |packets| {
            handover.written().fetch_add(packets, Ordering::AcqRel);
        };
        output.on_written(OnWritten(Box::new(written)));
    }
    let counters = drops.as_ref().map(|drops| drops.counters.clone());

    let intake = Arc::new(Intake::default());
    let stop = Arc::new(AtomicBool::new(false));
    let (to_worker, from_reader) = sync_channel(QUEUE);
    let inventory = Watcher::start(kernel::programs::linked);
    let mut pipeline = Pipeline::new(cluster.clone(), config.node, config.all_drops, intake.clone(), output)
        .with_inventory(inventory)
        .with_config(file.changes());
    pipeline.lookups = source.lookups();
    if config.max_records_per_second > 0 {
        pipeline.budget = Some(Budget::new(config.max_records_per_second, Instant::now()));
    }
    // Without folding in the kernel what is above the budget is still folded.
    let window = if config.aggregation_window.is_zero() { WINDOW } else { config.aggregation_window };
    let (connections, flow_counters) = match tc {
        Some(kernel::tc::TcHook { attacher, ring, flows, counters }) => {
            let view = TcView { flows, interfaces: attacher.interfaces() };
            pipeline.flows = Some(Flows::new(view, drops.is_some()));
            let stop = stop.clone();
            let attacher = std::thread::Builder::new().name("interfaces".into()).spawn(move || attacher.run(&stop))?;
            (Some(reader::Connections { ring, attacher }), Some(counters))
        }
        None => (None, None),
    };
    // Fires when the worker ends by itself: the output's reader has gone, or a bug.
    let (ended, mut worker_ended) = tokio::sync::oneshot::channel();

    // The first status says how the sources stand, and the first drops find their names.
    let (settled, wait) = std::sync::mpsc::channel::<()>();
    let worker = std::thread::Builder::new().name("worker".into()).spawn({
        move || {
            let _ = wait.recv();
            let setup = worker::Setup {
                counters: counters.as_deref(),
                flow_counters,
                hooks,
                previous,
                ring_size: u64::from(config.ring_bytes),
                window,
                handover,
                inherited,
            };
            let result = worker::run(pipeline, &from_reader, setup);
            let _ = ended.send(());
            result
        }
    })?;
    let reader = std::thread::Builder::new().name("reader".into()).spawn({
        let (stop, intake) = (stop.clone(), intake.clone());
        move || reader::run(drops, connections, &intake, &stop, &to_worker)
    })?;

    let duration = async {
        match config.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let (metrics, tail_metrics) = (output_metrics.clone(), output_metrics);
    let serving = async {
        match served {
            Some((listener, router)) => http::serve(listener, router, metrics, http::WRITE_TIMEOUT).await,
            None => std::future::pending().await,
        }
    };
    let serving_tail = async {
        match tail_served {
            Some((listener, router)) => http::serve(listener, router, tail_metrics, http::WRITE_TIMEOUT).await,
            None => std::future::pending().await,
        }
    };
    let settling = memory::keep_small(async {
        source::settled(&cluster).await;
        drop(settled);
    });
    let changes = source.follow(cluster.clone());
    tokio::select! {
        () = settling => {}
        _ = interrupt.recv() => tracing::debug!("SIGINT"),
        _ = terminate.recv() => tracing::debug!("SIGTERM"),
        () = duration => {}
        _ = &mut worker_ended => {}
        () = changes => {}
        () = serving => {}
        () = serving_tail => {}
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
        #[expect(clippy::disallowed_methods, reason = "a second signal asks for no more than an end")]
        std::process::exit(130);
    });
    tokio::task::spawn_blocking(move || {
        if reader.join().is_err() {
            bail!("the reader thread panicked");
        }
        worker.join().map_err(|_| anyhow!("the worker thread panicked"))?
    })
    .await?
}

async fn keep(state: Option<&StateFile>) {
    match state {
        Some(state) => state.keep().await,
        None => std::future::pending().await,
    }
}

/// Opens every sink, the first one being the ledger.
fn open_output(config: &Config, run: &str) -> anyhow::Result<FanOut> {
    let mut output = FanOut::new(RecordIds::new(run.to_owned(), config.cluster.clone(), config.node.clone()));
    let specs = if config.outputs.is_empty() { &[OutputSpec::STDOUT] } else { config.outputs.as_slice() };
    for (at, spec) in specs.iter().enumerate() {
        let (spec, default) = (spec.clone(), config.format);
        let (access, node) = (config.access.clone(), config.node.clone());
        let (name, format) = (spec.destination.to_string(), spec.format_name(default));
        let open = move || spec.open(default, &access, node.as_deref());
        match at {
            0 => output.add(open()?)?,
            _ => output.add_secondary(name, format, Box::new(open))?,
        }
    }
    if let Some(HistoryConfig { folder, readers, bytes }) = config.history.clone() {
        let run = run.to_owned();
        let open = move || {
            let opened = HistorySink::open(&folder, readers, &run, bytes).context("--history-dir")?;
            Ok(Box::new(opened) as Box<dyn Sink>)
        };
        output.add_secondary(
            crate::sink::history::NAME.to_owned(),
            crate::sink::history::FORMAT.as_str(),
            Box::new(open),
        )?;
    }
    Ok(output)
}

/// Loads and attaches the hook on freed packets.
fn open_drops(
    options: &kernel::KernelOptions,
    window: Duration,
    hooks: &mut Vec<HookState>,
) -> anyhow::Result<reader::Drops> {
    let (mut attached, names, symbols_error) = kernel::open(options)?;
    if let Some(error) = &symbols_error {
        tracing::warn!("{error}; drops are recorded by reason only, without location and mechanism");
    }
    if attached.locations_left_out > 0 {
        tracing::warn!(ranges = attached.locations_left_out, "code ranges without room in the programs' table");
    }
    let ring = attached.take_ring().ok_or_else(|| anyhow!("the ring buffer is already taken"))?;
    let aggregator = attached.take_aggregator().ok_or_else(|| anyhow!("the counts are already taken"))?;
    let counters = attached.take_counters().ok_or_else(|| anyhow!("the counters are already taken"))?;
    hooks.push(worker::drop_state(&attached, symbols_error.as_ref()));
    hooks.push(attached.rejects().state());
    Ok(reader::Drops { ring, aggregator, window, names, attached, counters: Arc::new(counters) })
}

/// Loads and attaches the tc hook. Where it can't be had and is not all that was asked for, its state says why.
fn open_tc(chosen: Option<&[HookName]>, hooks: &mut Vec<HookState>) -> anyhow::Result<Option<kernel::tc::TcHook>> {
    if !wants(chosen, HookName::Tc) {
        return Ok(None);
    }
    let mode = TcMode::of_this_kernel();
    if chosen.is_none() && mode == TcMode::Clsact {
        let why = "off by default before Linux 6.6, where tc filters outlive a killed agent: --hooks kfree_skb,tc";
        tracing::info!("tc hook {why}");
        hooks.push(worker::tc_unused(HookState::OFF, why.to_owned()));
        return Ok(None);
    }
    match kernel::tc::open(mode) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if wants(chosen, HookName::KfreeSkb) => {
            tracing::warn!("no tc hook: {error}; records lack DNS names, and connections without an answer go unseen");
            hooks.push(worker::tc_unused(HookState::REFUSED, error.to_string()));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// 16 hexadecimal digits. Ids of records are made of it, and stores use those as keys: among a million runs two are the same with a
/// probability of 1 in 37 million.
fn run_id() -> anyhow::Result<String> {
    let random = getrandom::u64().context("the kernel gives no random numbers, of which the run's id is made")?;
    Ok(format!("{random:016x}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    /// With 32 bits one of ten tries of 30,000 runs had two of the same id.
    #[test]
    fn runs_have_ids_of_their_own() {
        let ids: HashSet<String> = (0..300_000).map(|_| super::run_id().unwrap()).collect();
        assert_eq!(ids.len(), 300_000);
        assert!(ids.iter().all(|id| id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit())));
    }
}
