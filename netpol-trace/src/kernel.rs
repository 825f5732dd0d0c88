//! The kernel's side: resolves what the running kernel looks like, loads and attaches the programs, reads their records
//! and their counters. The only module that names aya or calls bpf(2).
//!
//! ```text
//! /sys/kernel/btf/vmlinux ─> layout ─┐
//! /proc/kallsyms ─────────> symbols ─┼─> filter ─> programs (attached) ─> ring ─> RawDrop
//!                                    └──────────────────────────────────> counters
//! ```

pub mod attach;
mod bpf;
pub mod btf;
pub mod carry;
pub mod clock;
pub mod counters;
mod errors;
pub mod filter;
pub mod fold;
pub mod hook;
pub mod layout;
mod mapping;
mod object;
pub mod pins;
pub mod probe;
pub mod programs;
pub mod reject;
pub mod ring;
pub mod symbols;
pub mod tc;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::fast::RandomState;
use netpol_trace_common::{DropEvent, NO_REASON, flags};

use self::attach::Attached;
pub use self::errors::KernelError;
use self::filter::Place;
use self::layout::Layout;
use self::symbols::{Symbols, SymbolsError};
use crate::memory;
use crate::model::drop_taxonomy::is_unspecific;
use crate::model::packet::PacketCount;
use crate::model::{DropFacts, PolicyRelevance, RejectVisibility, Str};

/// Where the kernel publishes its types.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// How the kernel's side is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Record drops of every reason but noise, not only those a policy may have made.
    pub all_drops: bool,
    /// Octets of the ring buffer, a power of two.
    pub ring_bytes: u32,
    /// Don't try the BTF tracepoint: for tests of the other form.
    pub raw_tracepoint: bool,
    /// Count repeated packets in the kernel instead of sending each.
    pub fold: bool,
    /// Pin the maps and the hook, so that counts, unread records and the hook outlive the agent.
    pub survive_restart: bool,
    /// The folder of pins. Empty: nothing is pinned, and leftovers of an earlier agent are not looked for.
    pub pin_folder: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            all_drops: false,
            ring_bytes: 2 << 20,
            raw_tracepoint: false,
            fold: true,
            survive_restart: false,
            pin_folder: PathBuf::new(),
        }
    }
}

/// One record of the kernel with its names resolved; the packet's bytes are still bytes.
#[derive(Debug, Clone)]
pub struct RawDrop {
    pub event: DropEvent,
    pub facts: DropFacts,
    pub packet_count: PacketCount,
}

/// Names for what the programs report as numbers.
#[derive(Debug)]
pub struct Names {
    layout: Layout,
    symbols: Option<Symbols>,
    /// See [`Place::nft_has_location`].
    nft_has_location: bool,
    answers: RejectVisibility,
    /// Names handed out, so that each exists once: drops repeat few places.
    interned: HashMap<(u32, u64, u64), Arc<Interned>, RandomState>,
    /// The same of devices.
    devices: HashMap<[u64; 2], Str, RandomState>,
    /// The loaded modules when the symbols were read.
    modules: String,
    /// Where unspecific drops are interesting.
    locations: Vec<&'static str>,
}

#[derive(Debug)]
struct Interned {
    reason: Option<Str>,
    location: Option<Str>,
    input: Option<Str>,
    /// Neither reason nor place speaks of an enforcer: told only because it lies in a module.
    dull: bool,
}

/// Places, and devices, remembered before the table is dropped and filled anew; a node has a few dozen.
const MAX_PLACES: usize = 4096;

impl Names {
    fn new(
        layout: Layout,
        symbols: Option<Symbols>,
        modules: String,
        answers: RejectVisibility,
        all_drops: bool,
    ) -> Names {
        let nft_has_location = release() >= (6, 7);
        let locations = filter::location_names(&layout.reasons, all_drops);
        Names {
            layout,
            symbols,
            nft_has_location,
            answers,
            interned: HashMap::default(),
            devices: HashMap::default(),
            modules,
            locations,
        }
    }

    /// The facts of one record. A new place may lie in a module that was loaded since; and where no enforcer drops anything, the
    /// programs need not tell of it again.
    pub fn resolve(&mut self, event: &DropEvent, attached: &mut Attached) -> DropFacts {
        let known = self.interned.get(&key(event)).cloned();
        let names = known.unwrap_or_else(|| self.meet(event, attached));
        self.facts(event, &names)
    }

    fn meet(&mut self, event: &DropEvent, attached: &mut Attached) -> Arc<Interned> {
        if self.modules_changed() {
            self.refresh(attached);
        }
        let place = self.place(event);
        if place.dull
            && place.location.is_some()
            && let Err(error) = attached.ignore(event.location)
        {
            tracing::debug!(location = place.location.as_deref(), %error, "a module's drops are told again and again");
        }
        place
    }

    /// Whether the kernel has nftables in its image; `None` when that can't be told.
    pub fn nft_is_built_in(&self) -> Option<bool> {
        self.symbols.as_ref().map(Symbols::nft_is_built_in)
    }

    pub fn modules_changed(&self) -> bool {
        self.symbols.is_some() && modules() != self.modules
    }

    /// Reads the symbols anew and tells the programs, after a module came or went.
    pub fn refresh(&mut self, attached: &mut Attached) {
        self.modules = modules();
        match Symbols::read() {
            Ok(symbols) => {
                if let Err(error) = attached.set_locations(&symbols, &self.locations) {
                    tracing::warn!(%error, "the programs' code ranges could not be updated");
                }
                self.symbols = Some(symbols);
                self.interned.clear();
            }
            Err(error) => tracing::warn!(%error, "kernel symbols could not be read again"),
        }
    }

    /// The names of a new place, that of `event`.
    fn place(&mut self, event: &DropEvent) -> Arc<Interned> {
        if self.interned.len() >= MAX_PLACES {
            self.interned.clear();
        }
        let symbol = |address: u64| self.symbols.as_ref()?.name(address).map(Str::from);
        let reason: Option<Str> = match event.reason {
            NO_REASON => None,
            value => Some(self.layout.reasons.name(value).map_or_else(|| value.to_string().into(), Arc::from)),
        };
        let location = symbol(event.location);
        let names = Arc::new(Interned {
            dull: is_unspecific(reason.as_deref())
                && !location.as_deref().is_some_and(|location| self.locations.contains(&location)),
            reason,
            location,
            input: if event.dst_input == 0 { None } else { symbol(event.dst_input) },
        });
        self.interned.insert(key(event), names.clone());
        names
    }

    fn facts(&mut self, event: &DropEvent, names: &Interned) -> DropFacts {
        self.nft_has_location |=
            names.location.as_deref() == Some("nft_do_chain") && names.reason.as_deref() == Some("NETFILTER_DROP");
        let mut site = filter::classify(&Place {
            reason: names.reason.as_deref(),
            location: names.location.as_deref(),
            input: names.input.as_deref(),
            has_dst: event.flags & flags::DST != 0,
            has_device: event.flags & flags::DEVICE != 0,
            has_socket: event.flags & flags::SOCKET != 0,
            has_conntrack: event.flags & (flags::CONNTRACK | flags::UNTRACKED) != 0,
            at_link_layer: event.data_offset < u32::from(event.network_header),
            kernel_thread: event.flags & flags::KERNEL_THREAD != 0,
            ifindex: event.ifindex,
            iif: event.iif,
            out_ifindex: event.out_ifindex,
            nft_has_location: self.nft_has_location,
        });
        if names.dull {
            site.relevance = PolicyRelevance::Noise;
        }
        DropFacts {
            reason: names.reason.clone(),
            location: names.location.clone(),
            site,
            device: self.device(event),
            netns: (event.netns != 0).then_some(event.netns),
            rejected: event.flags & flags::REJECTED != 0,
            visible_rejects: self.answers,
        }
    }

    /// The name of the packet's device.
    fn device(&mut self, event: &DropEvent) -> Option<Str> {
        if event.flags & flags::DEVICE == 0 || event.device[0].to_ne_bytes()[0] == 0 {
            return None;
        }
        if let Some(name) = self.devices.get(&event.device) {
            return Some(name.clone());
        }
        if self.devices.len() >= MAX_PLACES {
            self.devices.clear();
        }
        let octets: Vec<u8> = event.device.iter().flat_map(|word| word.to_ne_bytes()).take_while(|b| *b != 0).collect();
        let name: Str = String::from_utf8_lossy(&octets).into();
        self.devices.insert(event.device, name.clone());
        Some(name)
    }
}

/// What the names of a drop's place follow from.
fn key(event: &DropEvent) -> (u32, u64, u64) {
    (event.reason, event.location, event.dst_input)
}

/// Names of the loaded modules with their addresses; sizes and use counts left out.
fn modules() -> String {
    let text = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    text.lines().filter_map(|line| Some([line.split(' ').next()?, line.split(' ').nth(5)?].join(" "))).collect()
}

/// Major and minor of the running kernel; (0, 0) when it can't be told.
pub fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// How many CPUs the machine may have, in use now or not.
fn cpus() -> Result<u32, String> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| format!("{what}: {error}"))?;
    u32::try_from(cpus).map_err(|_| format!("{cpus} processors"))
}

/// The tracepoints and functions that programs attach to by the kernel's types.
const TRACEPOINTS: [&str; 2] = ["kfree_skb", "icmp_send"];
const FUNCTIONS: [&str; 3] = ["__icmp_send", "icmp6_send", "nf_ct_attach"];

/// Resolves, loads, attaches. Nothing of it outlives the process.
pub fn open(options: &Options) -> Result<(Attached, Names, Option<SymbolsError>), KernelError> {
    std::thread::scope(|scope| {
        // The symbols are read while the programs are loaded: each takes about a third of the start.
        let reading = scope.spawn(|| {
            // Before the symbols: a module that comes in between is noticed.
            let modules = modules();
            (modules, Symbols::read())
        });
        let blob = std::fs::read(Path::new(BTF_PATH)).map_err(KernelError::NoBtf)?;
        let btf = btf::Btf::parse(&blob)?;
        let layout = Layout::from_btf(&btf)?;
        let attached_to = object::types(&btf.only(&TRACEPOINTS, &FUNCTIONS)?)?;
        drop(btf);
        drop(blob);
        let mut read = None;
        let slot = &mut read;
        let symbols = move || {
            let (_, symbols) = slot.insert(reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            // Before the verifier wants memory, which counts as the agent's too.
            memory::trim();
            symbols.as_ref().ok()
        };
        let attached = Attached::new(&layout, &attached_to, symbols, options)?;
        let (modules, symbols, symbols_error) = match read {
            Some((modules, Ok(symbols))) => (modules, Some(symbols), None),
            Some((modules, Err(error))) => (modules, None, Some(error)),
            None => return Err(KernelError::Object("it was attached without a look at the symbols".into())),
        };
        let names = Names::new(layout, symbols, modules, attached.rejects().answers(), options.all_drops);
        Ok((attached, names, symbols_error))
    })
}
