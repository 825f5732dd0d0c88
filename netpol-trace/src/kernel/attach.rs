//! Attaches the programs and owns what the agent needs of them. Links are file descriptors: when the process ends, however it
//! ends, the kernel detaches.

use std::sync::Arc;

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use aya::{Btf, Ebpf};
use netpol_trace_common::{CodeRange, Config, Locations, PerCpu, ReasonFilter, aggregate};

use super::aggregate::Aggregator;
use super::aggregate::maps::{CpuSlots, MapSet};
use super::counters::KernelCounters;
use super::errors::{KernelError, cant_pin, unmapped};
use super::filter;
use super::handover::Handover;
use super::hook::{AttachForm, HookLink, adopt, attach_kfree_skb};
use super::layout::Layout;
use super::machine::{cpus, release};
use super::mapping::Mapping;
use super::object::{self, LocationsPod, OBJECT, take, take_data};
use super::options::KernelOptions;
use super::pins::{self, Pins};
use super::reject::Rejects;
use super::ring::DropRing;
use super::symbols::Symbols;

/// What an earlier agent left with `--survive-restart`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inherited {
    /// This agent took over the hook, which stayed attached.
    pub hook: bool,
    /// Packets that the earlier agent read from the kernel and did not write.
    pub lost: u64,
    /// This agent removed pins that it could not take over.
    pub removed: bool,
}

/// The attached programs and their maps.
pub struct Attached {
    /// Dropping it detaches.
    link: Option<HookLink>,
    ring: Option<DropRing>,
    aggregator: Option<Aggregator>,
    counters: Option<KernelCounters>,
    handover: Arc<Handover>,
    inherited: Inherited,
    locations: Array<MapData, LocationsPod>,
    /// Call sites in modules whose drops the programs ignore.
    ignored_sites: HashMap<MapData, u64, u8>,
    hook: AttachForm,
    rejects: Rejects,
    /// Code ranges for which the programs' table had no room.
    pub locations_left_out: usize,
    /// Holds the lock on the pins.
    _pins: Option<Pins>,
    /// Keeps the other programs and maps alive.
    _ebpf: Ebpf,
}

impl Attached {
    /// Loads and attaches the programs. Calls `symbols`, which may block, once the maps are loaded.
    pub(super) fn new<'s>(
        layout: &Layout,
        btf: &Btf,
        symbols: impl FnOnce() -> Option<&'s Symbols>,
        options: &KernelOptions,
    ) -> Result<Attached, KernelError> {
        let cpus = cpus().map_err(KernelError::Refused)?;
        let filter = filter::bitmaps(&layout.reasons, options.all_drops);
        let config = Config {
            arguments: layout.arguments,
            ovs_subsystem: layout.reasons.ovs_subsystem,
            aggregate: u32::from(options.aggregate),
            recursive: u32::from(release() < (6, 1)),
            slots: aggregate::slots(cpus),
            pad: 0,
            filter,
            offsets: layout.offsets,
        };
        // Pinned programs and maps have the settings built in.
        let same = (OBJECT, bytes_of(&config), options.ring_bytes);
        let (pins, removed) = if options.survive_restart {
            let pins = Pins::open(&options.pin_folder, same).map_err(cant_pin)?;
            let removed = pins.removed_others;
            (Some(pins), removed)
        } else {
            (None, pins::clear(&options.pin_folder))
        };
        let mut ebpf = object::load(&config, options, cpus, pins.as_ref())?;

        // Before the programs run, so that they filter from the first drop on.
        let mut locations: Array<_, LocationsPod> = take(&mut ebpf, "LOCATIONS")?;
        let (known, locations_left_out) = match symbols() {
            Some(symbols) => filter::locations(symbols, &filter::location_names(&layout.reasons, options.all_drops)),
            // Without symbols no call site has a name. The range of the image then contains all code.
            None => (Locations { image: CodeRange { start: 0, end: u64::MAX }, ..Locations::default() }, 0),
        };
        locations.set(0, LocationsPod(known), 0).map_err(|e| KernelError::Object(e.to_string()))?;
        let ignored_sites = take(&mut ebpf, "IGNORED_SITES")?;
        let handover = Arc::new(Handover::new(&take_data(&mut ebpf, "HANDOVER")?).map_err(cant_pin)?);
        let found = pins.as_ref().is_some_and(|pins| pins.found);
        let lost = if found { handover.take_over() } else { 0 };
        let adopted = pins.as_ref().and_then(adopt);
        let inherited = Inherited { hook: adopted.is_some(), lost, removed };
        let (link, hook, program) = match adopted {
            Some(adopted) => adopted,
            None => attach_kfree_skb(&mut ebpf, btf, options.raw_tracepoint)?,
        };
        let (per_cpu, state) = (take_data(&mut ebpf, "PER_CPU")?, take_data(&mut ebpf, "AGGREGATE_STATE")?);
        let mapped = Arc::new(Mapping::new(&per_cpu, cpus as usize).map_err(unmapped)?);
        let link = match &pins {
            Some(pins) => link.keep(pins, &mut ebpf)?,
            None => link,
        };
        let rejects = Rejects::attach(&mut ebpf, btf);
        let per_cpu = Array::try_from(Map::Array(per_cpu)).map_err(|error| KernelError::Object(error.to_string()))?;
        let counters = KernelCounters::new(per_cpu, program, unrecorded(&filter, layout));
        let counters = if found { counters.since(&handover) } else { Ok(counters) };
        let counters = counters.map_err(|error| KernelError::Refused(format!("pinned counters: {error}")))?;
        let slots = object::slots_of_each(&config);
        let sets = [map_set(&mut ebpf, 0, &mapped, slots)?, map_set(&mut ebpf, 1, &mapped, slots)?];
        let aggregator = Aggregator::new(sets, state, handover.clone()).map_err(unmapped)?;
        let ring = DropRing::new(take::<RingBuf<_>>(&mut ebpf, "EVENTS")?);
        Ok(Attached {
            link: Some(link),
            ring: Some(ring),
            aggregator: Some(aggregator),
            counters: Some(counters),
            handover,
            inherited,
            locations,
            ignored_sites,
            hook,
            rejects,
            locations_left_out,
            _pins: pins,
            _ebpf: ebpf,
        })
    }

    /// The handover to the next agent.
    pub fn handover(&self) -> &Arc<Handover> {
        &self.handover
    }

    pub fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// True if the hook stays attached when the agent ends.
    pub fn stays(&self) -> bool {
        matches!(self.link, Some(HookLink::Pinned(..)))
    }

    /// The reading end of the ring, once.
    pub fn take_ring(&mut self) -> Option<DropRing> {
        self.ring.take()
    }

    /// The aggregate stage, once.
    pub fn take_aggregator(&mut self) -> Option<Aggregator> {
        self.aggregator.take()
    }

    /// The counters, once.
    pub fn take_counters(&mut self) -> Option<KernelCounters> {
        self.counters.take()
    }

    pub fn hook(&self) -> &AttachForm {
        &self.hook
    }

    pub fn rejects(&self) -> &Rejects {
        &self.rejects
    }

    /// Updates the programs' code ranges, after a module was loaded or removed.
    pub(super) fn set_locations(&mut self, symbols: &Symbols, names: &[&str]) -> Result<(), MapError> {
        let (known, left_out) = filter::locations(symbols, names);
        self.locations_left_out = left_out;
        // Another module's code may be at these addresses now.
        for location in self.ignored_sites.keys().collect::<Result<Vec<_>, _>>()? {
            self.ignored_sites.remove(&location)?;
        }
        self.locations.set(0, LocationsPod(known), 0)
    }

    /// Makes the programs ignore unspecific drops at the call site `location`, in a module.
    pub(super) fn ignore(&mut self, location: u64) -> Result<(), MapError> {
        self.ignored_sites.insert(location, 1, 0)
    }

    /// Detaches the programs; their maps stay readable.
    pub fn detach(&mut self) {
        self.link = None;
        self.rejects = Rejects::default();
    }
}

/// The set of counting maps with number `which`: 0 or 1.
fn map_set(ebpf: &mut Ebpf, which: usize, per_cpu: &Arc<Mapping<PerCpu>>, slots: u32) -> Result<MapSet, KernelError> {
    let mut map = |name| take_data(ebpf, &format!("{name}_{which}"));
    Ok(MapSet {
        slots: CpuSlots {
            slots: map("FAST")?,
            slots_of_each: slots as usize,
            index: map("INDEX")?,
            per_cpu: per_cpu.clone(),
            set: which,
        },
        bitmap: map("BITMAP")?,
        shared: [map("FINE")?, map("COARSE")?, map("WIDE")?],
    })
}

/// ReasonNumbers that only `--all-drops` records.
fn unrecorded(default: &ReasonFilter, layout: &Layout) -> Vec<(u32, String)> {
    let all = filter::bitmaps(&layout.reasons, true);
    let left_out = layout
        .reasons
        .iter()
        .filter(|(r, _)| ReasonFilter::has(&all.anywhere, *r) && !ReasonFilter::has(&default.anywhere, *r));
    left_out.map(|(reason, name)| (reason, name.to_owned())).collect()
}

/// The settings as bytes, for the hash that names the folder of pins.
fn bytes_of(config: &Config) -> &[u8] {
    // SAFETY: plain words without padding, as the common crate asserts; lives as long as the reference.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(config).cast(), size_of::<Config>()) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    use super::super::ring::wait;
    use super::super::{KernelOptions, open};
    use super::AttachForm;
    use crate::skip::missing;
    use crate::{packet, require};

    /// The raw tracepoint, for kernels that reject the BTF tracepoint, loads and reads the same packet.
    #[test]
    fn the_raw_tracepoint_sees_a_closed_port() {
        let root = rustix::process::geteuid().is_root();
        require!(if root { Ok(()) } else { Err(missing("loading programs needs root")) });
        let options = KernelOptions { all_drops: true, raw_tracepoint: true, ..KernelOptions::default() };
        let (mut attached, ..) = open(&options).unwrap();
        assert!(matches!(attached.hook(), AttachForm::RawTracepoint(_)));
        let mut ring = attached.take_ring().unwrap();
        // A port that was free a moment ago and that nobody listens on.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < deadline, "no record of the refused connection");
            wait(&[ring.as_raw_fd()], Duration::from_millis(100));
            while let Some(event) = ring.pop() {
                if packet::decode(&event).is_ok_and(|p| p.headers.destination_port == Some(port) && p.headers.opens()) {
                    return;
                }
            }
        }
    }
}
