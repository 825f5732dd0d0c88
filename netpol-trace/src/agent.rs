//! The DaemonSet's process: attaches, runs the pipeline, tells its state, and leaves nothing behind.
//!
//! Two threads besides the runtime: the reader empties the kernel's ring and never waits for anything else; the worker
//! runs the pipeline and writes. Between them a bounded queue: when it is full, packets are counted as lost, not waited for.

pub mod reader;
pub mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::books::Intake;
use crate::cluster::Cluster;
use crate::kernel;
use crate::output::Output;
use crate::pipeline::Pipeline;
use crate::sink::Lines;

/// Batches between reader and worker; of at most [`reader::BATCH`] packets each.
const QUEUE: usize = 256;

/// How an agent is to run.
#[derive(Debug, Clone)]
pub struct Config {
    pub manifests: Vec<PathBuf>,
    pub node: Option<String>,
    pub cluster: Option<String>,
    pub all_drops: bool,
    pub output: Option<PathBuf>,
    pub duration: Option<Duration>,
    pub ring_bytes: u32,
    pub program_logs: bool,
}

/// Runs until a signal, the given duration, or the end of whoever reads the output.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Before anything else: a signal during the start must end the agent as cleanly as one later.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    for path in config.manifests.iter().filter(|path| path.as_os_str() != "-") {
        if let Err(error) = std::fs::metadata(path) {
            bail!("--manifests {}: {error}", path.display());
        }
    }
    let (cluster, loaded) = Cluster::from_manifests(&config.manifests);
    for problem in &loaded.problems {
        tracing::warn!("{problem}");
    }
    let lines = match &config.output {
        Some(path) => Lines::file(path).with_context(|| format!("can't write to {}", path.display()))?,
        None => Lines::stdout(),
    };
    let options = kernel::Options {
        all_drops: config.all_drops,
        ring_bytes: config.ring_bytes,
        program_logs: config.program_logs,
    };
    let (mut attached, names, symbols_error) = kernel::open(&options)?;
    if let Some(error) = &symbols_error {
        tracing::warn!("{error}; drops are recorded by reason only, without location and mechanism");
    }
    if attached.locations_left_out > 0 {
        tracing::warn!(ranges = attached.locations_left_out, "code ranges without room in the programs' table");
    }
    if options.program_logs {
        crate::kernel::log::forward(&mut attached);
    }
    let ring = attached.take_ring().ok_or_else(|| anyhow!("the ring buffer is already taken"))?;
    let counters = Arc::new(attached.take_counters().ok_or_else(|| anyhow!("the counters are already taken"))?);
    let hooks = worker::hook_states(&attached, symbols_error.as_ref());

    let intake = Arc::new(Intake::default());
    let stop = Arc::new(AtomicBool::new(false));
    let (to_worker, from_reader) = sync_channel(QUEUE);
    let output = Output::new(lines, run_id(), config.cluster.clone(), config.node.clone());
    let pipeline = Pipeline::new(cluster.clone(), config.node, config.all_drops, intake.clone(), output);
    // Fires when the worker ends by itself: the output's reader has gone, or a bug.
    let (ended, mut worker_ended) = tokio::sync::oneshot::channel();

    // Before the worker tells that we have started: whoever reads that may stop us at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let worker = std::thread::Builder::new().name("worker".into()).spawn({
        let counters = counters.clone();
        move || {
            let result = worker::run(pipeline, &from_reader, &counters, hooks);
            let _ = ended.send(());
            result
        }
    })?;
    let reader = std::thread::Builder::new().name("reader".into()).spawn({
        let (stop, intake, counters) = (stop.clone(), intake.clone(), counters.clone());
        let to_worker = to_worker.clone();
        move || reader::run(ring, names, attached, &counters, &intake, &stop, &to_worker)
    })?;

    let duration = async {
        match config.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let changes = follow(cluster, to_worker);
    tokio::select! {
        _ = interrupt.recv() => tracing::debug!("SIGINT"),
        _ = terminate.recv() => tracing::debug!("SIGTERM"),
        () = duration => {}
        _ = &mut worker_ended => {}
        () = changes => {}
    }

    stop.store(true, Ordering::Release);
    // A second signal must end even an agent whose output is blocked.
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
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

/// Follows the source and tells the worker of every change of its state.
async fn follow(cluster: Cluster, to_worker: std::sync::mpsc::SyncSender<worker::Message>) {
    let mut changes = cluster.changes();
    let watch = cluster.watch();
    tokio::pin!(watch);
    loop {
        tokio::select! {
            () = &mut watch => return,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                // A full queue means a blocked output; the state is told with the next status.
                let _ = to_worker.try_send(worker::Message::SourceChanged);
            }
        }
    }
}

/// Eight hex digits that tell runs apart.
fn run_id() -> String {
    use std::hash::{BuildHasher, Hasher};
    // Keyed from the system's random source, anew in every process.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:08x}", random as u32)
}
