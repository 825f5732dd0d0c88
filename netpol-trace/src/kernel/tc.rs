//! Hook 2: the tc programs on the host's side of pods' interfaces: loading, attaching, and what comes back from them.
//!
//! TCX (from 6.6) when there is such a thing: links are file descriptors and end with the process, and ours is put first.
//! Before, clsact filters at the highest priority: they outlive a killed agent, do nothing without it, and the next start
//! removes them.

pub mod attacher;
pub mod interfaces;
pub mod ring;

use std::io;

use aya::maps::{HashMap as AyaHashMap, MapData, MapError, PerCpuArray};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use netpol_trace_common::tc::{FlowCounters as RawCounters, FlowKey, FlowState, RECENT};

use super::errors::{chain, permission, short};
use super::object::{OBJECT, pod, take};
pub use attacher::{Attacher, cleanup};
pub use interfaces::Interfaces;
pub use ring::{FlowRing, Told};

/// Names of the programs, also of their filters: a leaked one is found by it.
pub const FROM_POD_PROGRAM: &str = "netpol_from_pod";
pub const TO_POD_PROGRAM: &str = "netpol_to_pod";
/// Entries of the map of connections.
pub const MAX_FLOWS: u32 = 32 * 1024;
/// Octets of the connections' ring.
const RING_BYTES: u32 = 1 << 20;

/// Why connections can't be watched. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TcError {
    #[error("not permitted to load tc programs ({0}): grant CAP_BPF and CAP_NET_ADMIN")]
    NotPermitted(String),
    #[error("the kernel refuses the tc programs: {0}")]
    Refused(String),
    #[error("this network namespace's interfaces can't be followed: {0}")]
    Netlink(#[from] io::Error),
}

/// How programs are attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Links that end with the process (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Tcx => "tcx",
            Mode::Clsact => "clsact",
        }
    }

    /// What this kernel has.
    pub fn of_this_kernel() -> Mode {
        // Asking attaches nothing. A kernel without TCX doesn't know the question (EINVAL); without permission the version says.
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Ok(_) => Mode::Tcx,
            Err(error) if permission(&error).is_some() && super::release() >= (6, 6) => Mode::Tcx,
            Err(_) => Mode::Clsact,
        }
    }
}

/// The hook's parts, each for its own thread.
pub struct Opened {
    pub attacher: Attacher,
    pub ring: FlowRing,
    pub flows: FlowMap,
    pub counters: Counters,
}

/// Loads both programs. Nothing is attached yet.
pub fn open(mode: Mode) -> Result<Opened, TcError> {
    let mut ebpf = load()?;
    let missing = |error: super::KernelError| TcError::Refused(error.to_string());
    let ring = FlowRing::new(take(&mut ebpf, "FLOW_EVENTS").map_err(missing)?);
    let flows = FlowMap(take(&mut ebpf, "FLOWS").map_err(missing)?);
    let counters = Counters(take(&mut ebpf, "FLOW_COUNTERS").map_err(missing)?);
    let lease = take(&mut ebpf, "LEASE").map_err(missing)?;
    Ok(Opened { attacher: Attacher::new(ebpf, lease, mode)?, ring, flows, counters })
}

/// Loads both programs and, where that leaves no trace (TCX), attaches one to the loopback device; without a lease it does
/// nothing there.
pub fn try_out(mode: Mode) -> Result<(), TcError> {
    let mut ebpf = load()?;
    if mode == Mode::Tcx {
        let program = attacher::program(&mut ebpf, FROM_POD_PROGRAM).map_err(TcError::Refused)?;
        program.attach("lo", TcAttachType::Ingress).map_err(|error| refused(&error))?;
    }
    Ok(())
}

fn load() -> Result<Ebpf, TcError> {
    let cpus = super::cpus().map_err(TcError::Refused)?;
    // A second load of the object, so that either hook works without the other; what belongs to the other one stays tiny.
    let mut ebpf = EbpfLoader::new()
        // As the other hook does.
        .btf(None)
        .map_max_entries("EVENTS", 4096)
        .map_max_entries("FAST_0", 1)
        .map_max_entries("FAST_1", 1)
        .map_max_entries("PLACES_0", 1)
        .map_max_entries("PLACES_1", 1)
        .map_max_entries("FOLDS_0", 1)
        .map_max_entries("FOLDS_1", 1)
        .map_max_entries("COARSE_0", 1)
        .map_max_entries("COARSE_1", 1)
        .map_max_entries("WIDE_0", 1)
        .map_max_entries("WIDE_1", 1)
        .map_max_entries("DULL", 1)
        .map_max_entries("FLOW_EVENTS", RING_BYTES)
        .map_max_entries("FLOWS", MAX_FLOWS)
        .map_max_entries("RECENTLY", cpus * RECENT)
        .load(OBJECT)
        .map_err(|error| refused(&error))?;
    for name in [FROM_POD_PROGRAM, TO_POD_PROGRAM] {
        let program = attacher::program(&mut ebpf, name).map_err(TcError::Refused)?;
        program.load().map_err(|error| {
            if let aya::programs::ProgramError::LoadError { verifier_log, .. } = &error {
                tracing::debug!("verifier: {verifier_log}");
            }
            refused(&error)
        })?;
    }
    Ok(ebpf)
}

fn refused(error: &(dyn std::error::Error + 'static)) -> TcError {
    match permission(error) {
        Some(_) => TcError::NotPermitted(short(&chain(error))),
        None => TcError::Refused(short(&chain(error))),
    }
}

pod! {
    KeyPod(FlowKey);
    StatePod(FlowState);
    CountersPod(RawCounters);
}

/// The kernel's table of open connections.
pub struct FlowMap(AyaHashMap<MapData, KeyPod, StatePod>);

impl FlowMap {
    /// `None`: answered, or never there.
    pub fn get(&self, key: &FlowKey) -> Option<FlowState> {
        self.0.get(&KeyPod(*key), 0).ok().map(|state| state.0)
    }

    pub fn remove(&mut self, key: &FlowKey) {
        // Answered meanwhile: it is gone already.
        let _ = self.0.remove(&KeyPod(*key));
    }

    /// All keys; entries that come and go meanwhile may be missed or repeated.
    pub fn keys(&self) -> Vec<FlowKey> {
        self.0.keys().take(2 * MAX_FLOWS as usize).filter_map(|key| key.ok().map(|key| key.0)).collect()
    }
}

/// The kernel's side as the thread that makes records sees it.
pub struct View {
    pub flows: FlowMap,
    pub interfaces: std::sync::Arc<Interfaces>,
}

/// The hook's own books.
pub struct Counters(PerCpuArray<MapData, CountersPod>);

impl Counters {
    pub fn read(&self) -> Result<RawCounters, MapError> {
        let mut sum = RawCounters::default();
        for CountersPod(cpu) in self.0.get(&0, 0)?.iter() {
            sum.opened += cpu.opened;
            sum.reported += cpu.reported;
            sum.lost_ring += cpu.lost_ring;
            sum.lost_full += cpu.lost_full;
            sum.lost_insert += cpu.lost_insert;
            sum.answers += cpu.answers;
            sum.answers_lost += cpu.answers_lost;
            sum.unread += cpu.unread;
        }
        Ok(sum)
    }
}
