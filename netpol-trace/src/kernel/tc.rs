//! Hook 2: loads and attaches the tc programs on the host's end of pods' interfaces, and reads their records.
//!
//! From 6.6 on by TCX: its links are file descriptors that end with the process, and ours is put first. Before, by clsact filters at the
//! highest priority: they outlive a killed agent, do nothing without it, and the next start removes them.

mod attacher;
mod cleanup;
pub mod interfaces;
mod mode;
mod order;
mod ring;

use aya::maps::{HashMap as AyaHashMap, MapData, MapError, PerCpuArray};
use aya::programs::{ProgramError, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use netpol_trace_common::tc::{FlowCounters, FlowKey, FlowState, RECENT};

use super::errors::KernelError;
use super::machine::cpus;
use super::object::{OBJECT, pod, take};
pub use attacher::Attacher;
pub use cleanup::cleanup;
pub use interfaces::Interfaces;
pub use mode::{FROM_POD_PROGRAM, TO_POD_PROGRAM, TcError, TcMode};
pub use ring::{FlowRing, TcEvent};

/// Entries of the map of connections.
pub const MAX_FLOWS: u32 = 32 * 1024;
/// Bytes of the connections' ring.
const RING_BYTES: u32 = 1 << 20;

/// The parts of the hook, each for its own thread.
pub struct TcHook {
    pub attacher: Attacher,
    pub ring: FlowRing,
    pub flows: FlowMap,
    pub counters: TcCounters,
}

/// Loads both programs, without attaching them.
pub fn open(mode: TcMode) -> Result<TcHook, TcError> {
    let mut ebpf = load()?;
    let missing = |error: KernelError| TcError::Refused(error.to_string());
    let ring = FlowRing::new(take(&mut ebpf, "FLOW_EVENTS").map_err(missing)?);
    let flows = FlowMap(take(&mut ebpf, "FLOWS").map_err(missing)?);
    let counters = TcCounters(take(&mut ebpf, "FLOW_COUNTERS").map_err(missing)?);
    let lease = take(&mut ebpf, "LEASE").map_err(missing)?;
    Ok(TcHook { attacher: Attacher::new(ebpf, lease, mode)?, ring, flows, counters })
}

/// Loads both programs and, with TCX, attaches one to the loopback device for a moment; without a lease it does nothing there.
pub fn try_out(mode: TcMode) -> Result<(), TcError> {
    let mut ebpf = load()?;
    if mode == TcMode::Tcx {
        let program = attacher::program(&mut ebpf, FROM_POD_PROGRAM).map_err(TcError::Refused)?;
        program.attach("lo", TcAttachType::Ingress).map_err(|error| TcError::refused(&error))?;
    }
    Ok(())
}

fn load() -> Result<Ebpf, TcError> {
    let cpus = cpus().map_err(TcError::Refused)?;
    // Loads the object a second time, so that each hook works without the other. Maps of the other hook get their least size.
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .map_max_entries("EVENTS", 4096)
        .map_max_entries("FAST_0", 1)
        .map_max_entries("FAST_1", 1)
        .map_max_entries("INDEX_0", 1)
        .map_max_entries("INDEX_1", 1)
        .map_max_entries("FINE_0", 1)
        .map_max_entries("FINE_1", 1)
        .map_max_entries("COARSE_0", 1)
        .map_max_entries("COARSE_1", 1)
        .map_max_entries("WIDE_0", 1)
        .map_max_entries("WIDE_1", 1)
        .map_max_entries("IGNORED_SITES", 1)
        .map_max_entries("FLOW_EVENTS", RING_BYTES)
        .map_max_entries("FLOWS", MAX_FLOWS)
        .map_max_entries("RECENTLY", cpus * RECENT)
        .load(OBJECT)
        .map_err(|error| TcError::refused(&error))?;
    for name in [FROM_POD_PROGRAM, TO_POD_PROGRAM] {
        let program = attacher::program(&mut ebpf, name).map_err(TcError::Refused)?;
        program.load().map_err(|error| {
            if let ProgramError::LoadError { verifier_log, .. } = &error {
                tracing::debug!("verifier: {verifier_log}");
            }
            TcError::refused(&error)
        })?;
    }
    Ok(ebpf)
}

pod! {
    KeyPod(FlowKey);
    StatePod(FlowState);
    CountersPod(FlowCounters);
}

/// The programs' map of connections.
pub struct FlowMap(AyaHashMap<MapData, KeyPod, StatePod>);

impl FlowMap {
    /// `None` if the connection was answered or is unknown.
    pub fn get(&self, key: &FlowKey) -> Option<FlowState> {
        self.0.get(&KeyPod(*key), 0).ok().map(|state| state.0)
    }

    pub fn remove(&mut self, key: &FlowKey) {
        // An error means that the program has removed the entry.
        let _ = self.0.remove(&KeyPod(*key));
    }

    /// All keys. Entries that the programs add or remove meanwhile may be missed or repeated.
    pub fn keys(&self) -> Vec<FlowKey> {
        self.0.keys().take(2 * MAX_FLOWS as usize).filter_map(|key| key.ok().map(|key| key.0)).collect()
    }
}

/// The state of the tc hook that the pipeline reads.
pub struct TcView {
    pub flows: FlowMap,
    pub interfaces: std::sync::Arc<Interfaces>,
}

/// The accounting of the hook.
pub struct TcCounters(PerCpuArray<MapData, CountersPod>);

impl TcCounters {
    pub fn read(&self) -> Result<FlowCounters, MapError> {
        let mut sum = FlowCounters::default();
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
