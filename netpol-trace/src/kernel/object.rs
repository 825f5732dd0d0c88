//! The embedded eBPF object: loads it and finds its maps and programs by name.

use aya::maps::{Map, MapData};
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};
use netpol_trace_common::aggregate::{self, INDEX_WORDS_PER_SLOT};
use netpol_trace_common::{Config, Locations, PerCpu};

use super::errors::{KernelError, load_error};
use super::options::KernelOptions;
use super::pins::{self, Pins};

/// The programs, built by the build script.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol-trace.bpf.o"));

macro_rules! pod {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        #[repr(transparent)]
        pub struct $name(pub $inner);
        // SAFETY: a transparent wrapper of plain words, valid for every bit pattern and without padding (the common crate
        // asserts the layout).
        unsafe impl aya::Pod for $name {}
    )*};
}

pub(super) use pod;

pod! {
    /// [`PerCpu`] in the form that aya reads from a map.
    PerCpuPod(PerCpu);
    ConfigPod(Config);
    LocationsPod(Locations);
}

/// Loads the maps and programs of the drop hook, without attaching them. Opens the maps that are pinned.
pub(super) fn load(
    config: &Config,
    options: &KernelOptions,
    cpus: u32,
    pins: Option<&Pins>,
) -> Result<Ebpf, KernelError> {
    let config = ConfigPod(*config);
    let slots = cpus * slots_of_each(&config.0);
    let flows = if config.0.recursive != 0 { aggregate::MAX_FLOWS_WITHOUT_SLOTS } else { aggregate::MAX_FLOWS };
    let mut loader = EbpfLoader::new();
    if let Some(pins) = pins {
        for name in pins::MAPS {
            loader.map_pin_path(name, pins.path(name));
        }
    }
    loader
        // Nothing in the object is relocated by the kernel's types: reading them again would take 20 MiB.
        .btf(None)
        .override_global("CONFIG", &config, true)
        .map_max_entries("EVENTS", options.ring_bytes)
        .map_max_entries("PER_CPU", cpus)
        .map_max_entries("FAST_0", slots)
        .map_max_entries("FAST_1", slots)
        .map_max_entries("INDEX_0", slots * INDEX_WORDS_PER_SLOT)
        .map_max_entries("INDEX_1", slots * INDEX_WORDS_PER_SLOT)
        .map_max_entries("FINE_0", flows)
        .map_max_entries("FINE_1", flows)
        // The tc hook loads maps of its own.
        .map_max_entries("FLOWS", 1)
        .map_max_entries("RECENTLY", 1)
        .map_max_entries("FLOW_EVENTS", 4096)
        .load(OBJECT)
        .map_err(load_error)
}

/// Slots of each CPU: 1, the least size of a map, on kernels where they are not used.
pub(super) fn slots_of_each(config: &Config) -> u32 {
    if config.recursive != 0 { 1 } else { config.slots }
}

/// The kernel's types in aya's form.
pub(super) fn types(btf: &[u8]) -> Result<Btf, KernelError> {
    Btf::parse(btf, Default::default()).map_err(|error| KernelError::Object(error.to_string()))
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| KernelError::Object(format!("the object has no program {name}")))
}

pub(super) fn take<M: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<M, KernelError> {
    ebpf.take_map(name)
        .and_then(|map| M::try_from(map).ok())
        .ok_or_else(|| KernelError::Object(format!("the object has no map {name}")))
}

/// Takes a map without a typed wrapper.
pub(super) fn take_data(ebpf: &mut Ebpf, name: &str) -> Result<MapData, KernelError> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(data) | Map::Array(data)) => Ok(data),
        _ => Err(KernelError::Object(format!("the object has no map {name}"))),
    }
}
