//! Attaches the programs and owns what the agent needs of them. Links are file descriptors: when the process ends, however it
//! ends, the kernel detaches.

use std::sync::Arc;

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use aya::{Btf, Ebpf};
use netpol_trace_common::{CodeRange, Config, Filter, Locations, PerCpu, fold};

use super::carry::Carry;
use super::counters::Counters;
use super::errors::{KernelError, cant_pin, unmapped};
use super::fold::{Folds, Own, Set};
use super::hook::{Hook, Link, adopt, attach_kfree_skb};
use super::layout::Layout;
use super::mapping::Mapping;
use super::object::{self, LocationsPod, OBJECT, take, take_data};
use super::pins::{self, Pins};
use super::reject::Rejects;
use super::ring::Ring;
use super::symbols::Symbols;
use super::{Options, cpus, filter, release};

/// What an agent before this one left, and what became of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inherited {
    /// This agent took over the hook, which was attached all the time.
    pub hook: bool,
    /// Packets that the earlier agent had taken out of the kernel, and that ended with it.
    pub lost: u64,
    /// This agent removed what it could not take over.
    pub removed: bool,
}

/// The attached programs and their maps.
pub struct Attached {
    /// Dropping it detaches.
    link: Option<Link>,
    ring: Option<Ring>,
    folds: Option<Folds>,
    counters: Option<Counters>,
    carry: Arc<Carry>,
    inherited: Inherited,
    locations: Array<MapData, LocationsPod>,
    /// Places in modules that the programs are silent about.
    dull: HashMap<MapData, u64, u8>,
    hook: Hook,
    rejects: Rejects,
    /// Code ranges that found no room in the programs' table.
    pub locations_left_out: usize,
    /// Nobody else may use them meanwhile.
    _pins: Option<Pins>,
    /// Keeps the programs and maps alive that nothing else holds.
    _ebpf: Ebpf,
}

impl Attached {
    /// `symbols` may have to be waited for.
    pub(super) fn new<'s>(
        layout: &Layout,
        btf: &Btf,
        symbols: impl FnOnce() -> Option<&'s Symbols>,
        options: &Options,
    ) -> Result<Attached, KernelError> {
        let cpus = cpus().map_err(KernelError::Refused)?;
        let filter = filter::bitmaps(&layout.reasons, options.all_drops);
        let config = Config {
            arguments: layout.arguments,
            ovs_subsystem: layout.reasons.ovs_subsystem,
            fold: u32::from(options.fold),
            recursive: u32::from(release() < (6, 1)),
            slots: fold::slots(cpus),
            pad: 0,
            filter,
            offsets: layout.offsets,
        };
        // Settings are part of what must be the same: pinned programs and maps have them built in.
        let same = (OBJECT, bytes_of(&config), options.ring_bytes);
        let (pins, removed) = if options.survive_restart {
            let pins = Pins::open(&options.pin_folder, same).map_err(cant_pin)?;
            let removed = pins.removed_others;
            (Some(pins), removed)
        } else {
            (None, pins::clear(&options.pin_folder))
        };
        let mut ebpf = object::load(&config, options, cpus, pins.as_ref())?;

        // Before the programs run: from their first drop on they know what to look at.
        let mut locations: Array<_, LocationsPod> = take(&mut ebpf, "LOCATIONS")?;
        let (known, locations_left_out) = match symbols() {
            Some(symbols) => filter::locations(symbols, &filter::location_names(&layout.reasons, options.all_drops)),
            // Without names no place tells anything.
            None => (Locations { image: CodeRange { start: 0, end: u64::MAX }, ..Locations::default() }, 0),
        };
        locations.set(0, LocationsPod(known), 0).map_err(|e| KernelError::Object(e.to_string()))?;
        let dull = take(&mut ebpf, "DULL")?;
        let carry = Arc::new(Carry::new(&take_data(&mut ebpf, "CARRY")?).map_err(cant_pin)?);
        let found = pins.as_ref().is_some_and(|pins| pins.found);
        let lost = if found { carry.take_over() } else { 0 };
        let adopted = pins.as_ref().and_then(adopt);
        let inherited = Inherited { hook: adopted.is_some(), lost, removed };
        let (link, hook, program) = match adopted {
            Some(adopted) => adopted,
            None => attach_kfree_skb(&mut ebpf, btf, options.raw_tracepoint)?,
        };
        let (per_cpu, state) = (take_data(&mut ebpf, "PER_CPU")?, take_data(&mut ebpf, "FOLD_STATE")?);
        let mapped = Arc::new(Mapping::new(&per_cpu, cpus as usize).map_err(unmapped)?);
        let link = match &pins {
            Some(pins) => link.keep(pins, &mut ebpf)?,
            None => link,
        };
        let rejects = Rejects::attach(&mut ebpf, btf);
        let per_cpu = Array::try_from(Map::Array(per_cpu)).map_err(|error| KernelError::Object(error.to_string()))?;
        let counters = Counters::new(per_cpu, program, unrecorded(&filter, layout));
        let counters = if found { counters.since(&carry) } else { Ok(counters) };
        let counters = counters.map_err(|error| KernelError::Refused(format!("pinned counters: {error}")))?;
        let slots = object::slots_of_each(&config);
        let sets = [set(&mut ebpf, 0, &mapped, slots)?, set(&mut ebpf, 1, &mapped, slots)?];
        let folds = Folds::new(sets, state, carry.clone());
        let folds = folds.map_err(unmapped)?;
        let ring = Ring::new(take::<RingBuf<_>>(&mut ebpf, "EVENTS")?);
        Ok(Attached {
            link: Some(link),
            ring: Some(ring),
            folds: Some(folds),
            counters: Some(counters),
            carry,
            inherited,
            locations,
            dull,
            hook,
            rejects,
            locations_left_out,
            _pins: pins,
            _ebpf: ebpf,
        })
    }

    /// How far this agent has come, for the next one.
    pub fn carry(&self) -> &Arc<Carry> {
        &self.carry
    }

    pub fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// Whether the hook stays when the agent ends.
    pub fn stays(&self) -> bool {
        matches!(self.link, Some(Link::Pinned(..)))
    }

    /// The reading end of the ring, once.
    pub fn take_ring(&mut self) -> Option<Ring> {
        self.ring.take()
    }

    /// The counts of repeated packets, once.
    pub fn take_folds(&mut self) -> Option<Folds> {
        self.folds.take()
    }

    /// The counters, once.
    pub fn take_counters(&mut self) -> Option<Counters> {
        self.counters.take()
    }

    pub fn hook(&self) -> &Hook {
        &self.hook
    }

    pub fn rejects(&self) -> &Rejects {
        &self.rejects
    }

    /// Tells the programs where unspecific drops are interesting, after a module came or went.
    pub(super) fn set_locations(&mut self, symbols: &Symbols, names: &[&str]) -> Result<(), MapError> {
        let (known, left_out) = filter::locations(symbols, names);
        self.locations_left_out = left_out;
        // Another module's code may lie there now.
        for location in self.dull.keys().collect::<Result<Vec<_>, _>>()? {
            self.dull.remove(&location)?;
        }
        self.locations.set(0, LocationsPod(known), 0)
    }

    /// Tells the programs not to report unspecific drops at `location`, in a module.
    pub(super) fn ignore(&mut self, location: u64) -> Result<(), MapError> {
        self.dull.insert(location, 1, 0)
    }

    /// Takes the programs off their hooks; maps stay readable.
    pub fn detach(&mut self) {
        self.link = None;
        self.rejects = Rejects::default();
    }
}

/// One of the two sets of maps in which repeated packets are counted.
fn set(ebpf: &mut Ebpf, which: usize, per_cpu: &Arc<Mapping<PerCpu>>, slots: u32) -> Result<Set, KernelError> {
    let mut map = |name| take_data(ebpf, &format!("{name}_{which}"));
    Ok(Set {
        own: Own {
            slots: map("FAST")?,
            slots_of_each: slots as usize,
            places: map("PLACES")?,
            per_cpu: per_cpu.clone(),
            which,
        },
        known: map("KNOWN")?,
        shared: [map("FOLDS")?, map("COARSE")?, map("WIDE")?],
    })
}

/// Reasons that only `--all-drops` records.
fn unrecorded(default: &Filter, layout: &Layout) -> Vec<(u32, String)> {
    let all = filter::bitmaps(&layout.reasons, true);
    let left_out =
        layout.reasons.iter().filter(|(r, _)| Filter::has(&all.anywhere, *r) && !Filter::has(&default.anywhere, *r));
    left_out.map(|(reason, name)| (reason, name.to_owned())).collect()
}

/// As octets, to be told from others.
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
    use super::super::{Options, open};
    use super::Hook;
    use crate::skip::missing;
    use crate::{packet, require};

    /// The form for kernels that refuse the BTF tracepoint: it loads, and reads the same packet.
    #[test]
    fn the_raw_tracepoint_sees_a_closed_port() {
        let root = rustix::process::geteuid().is_root();
        require!(if root { Ok(()) } else { Err(missing("loading programs needs root")) });
        let options = Options { all_drops: true, raw_tracepoint: true, ..Options::default() };
        let (mut attached, ..) = open(&options).unwrap();
        assert!(matches!(attached.hook(), Hook::RawTracepoint(_)));
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
