//! Resolves the numbers that the programs report (reasons, code addresses, devices) to names.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use netpol_trace_common::{NO_REASON, flags};

use super::attach::Attached;
use super::drop::RawSite;
use super::filter::{self, SiteEvidence};
use super::layout::Layout;
use super::machine::{modules, release};
use super::symbols::Symbols;
use crate::model::drop_taxonomy::is_unspecific;
use crate::model::{DropFacts, PolicyRelevance, RejectVisibility, Str};

/// Names for the numbers of drop sites.
#[derive(Debug)]
pub struct SiteNames {
    layout: Layout,
    symbols: Option<Symbols>,
    /// See [`SiteEvidence::nft_has_location`].
    nft_has_location: bool,
    answers: RejectVisibility,
    /// Names of the call sites that were seen: drops repeat a few call sites.
    call_sites: HashMap<(u32, u64, u64), Arc<CallSite>, RandomState>,
    devices: HashMap<[u64; 2], Str, RandomState>,
    /// The loaded modules when the symbols were read.
    modules: String,
    /// Functions whose unspecific drops are recorded.
    locations: Vec<&'static str>,
}

/// The names of a drop's reason and call site.
#[derive(Debug)]
struct CallSite {
    reason: Option<Str>,
    location: Option<Str>,
    input: Option<Str>,
    /// The reason is unspecific and no enforcer drops packets here. The programs reported the drop only because the call site is in a
    /// module.
    ignored: bool,
}

/// Call sites, and devices, that are kept before the table is cleared; a node has a few dozen.
const MAX_CALL_SITES: usize = 4096;

impl SiteNames {
    pub(super) fn new(
        layout: Layout,
        symbols: Option<Symbols>,
        modules: String,
        answers: RejectVisibility,
        all_drops: bool,
    ) -> SiteNames {
        let nft_has_location = release() >= (6, 7);
        let locations = filter::location_names(&layout.reasons, all_drops);
        SiteNames {
            layout,
            symbols,
            nft_has_location,
            answers,
            call_sites: HashMap::default(),
            devices: HashMap::default(),
            modules,
            locations,
        }
    }

    /// The facts about a drop's site. At a new call site reads the symbols again if a module was loaded since, and makes the programs ignore
    /// the call site if no enforcer drops packets there.
    pub fn resolve(&mut self, site: &RawSite, attached: &mut Attached) -> DropFacts {
        let known = self.call_sites.get(&key(site)).cloned();
        let names = known.unwrap_or_else(|| self.resolve_new(site, attached));
        self.facts(site, &names)
    }

    fn resolve_new(&mut self, site: &RawSite, attached: &mut Attached) -> Arc<CallSite> {
        if self.modules_changed() {
            self.refresh(attached);
        }
        let names = self.call_site(site);
        if names.ignored
            && names.location.is_some()
            && let Err(error) = attached.ignore(site.location)
        {
            tracing::debug!(location = names.location.as_deref(), %error, "the programs go on reporting a module's drops");
        }
        names
    }

    /// True if the kernel image contains nftables; `None` if that is unknown.
    pub fn nft_is_built_in(&self) -> Option<bool> {
        self.symbols.as_ref().map(Symbols::nft_is_built_in)
    }

    pub fn modules_changed(&self) -> bool {
        self.symbols.is_some() && modules() != self.modules
    }

    /// Reads the symbols again and updates the programs' code ranges, after a module was loaded or removed.
    pub fn refresh(&mut self, attached: &mut Attached) {
        self.modules = modules();
        match Symbols::read() {
            Ok(symbols) => {
                if let Err(error) = attached.set_locations(&symbols, &self.locations) {
                    tracing::warn!(%error, "the programs' code ranges could not be updated");
                }
                self.symbols = Some(symbols);
                self.call_sites.clear();
            }
            Err(error) => tracing::warn!(%error, "kernel symbols could not be read again"),
        }
    }

    fn call_site(&mut self, site: &RawSite) -> Arc<CallSite> {
        if self.call_sites.len() >= MAX_CALL_SITES {
            self.call_sites.clear();
        }
        let symbol = |address: u64| self.symbols.as_ref()?.name(address).map(Str::from);
        let reason: Option<Str> = match site.reason {
            NO_REASON => None,
            value => Some(self.layout.reasons.name(value).map_or_else(|| value.to_string().into(), Arc::from)),
        };
        let location = symbol(site.location);
        let names = Arc::new(CallSite {
            ignored: is_unspecific(reason.as_deref())
                && !location.as_deref().is_some_and(|location| self.locations.contains(&location)),
            reason,
            location,
            input: if site.dst_input == 0 { None } else { symbol(site.dst_input) },
        });
        self.call_sites.insert(key(site), names.clone());
        names
    }

    fn facts(&mut self, raw: &RawSite, names: &CallSite) -> DropFacts {
        self.nft_has_location |=
            names.location.as_deref() == Some("nft_do_chain") && names.reason.as_deref() == Some("NETFILTER_DROP");
        let mut site = filter::classify(&SiteEvidence {
            reason: names.reason.as_deref(),
            location: names.location.as_deref(),
            input: names.input.as_deref(),
            has_dst: raw.has(flags::DST),
            has_device: raw.has(flags::DEVICE),
            has_socket: raw.has(flags::SOCKET),
            has_conntrack: raw.has_conntrack(),
            at_link_layer: raw.at_link_layer,
            kernel_thread: raw.has(flags::KERNEL_THREAD),
            ifindex: raw.ifindex,
            iif: raw.iif,
            out_ifindex: raw.out_ifindex,
            nft_has_location: self.nft_has_location,
        });
        if names.ignored {
            site.relevance = PolicyRelevance::Noise;
        }
        DropFacts {
            reason: names.reason.clone(),
            location: names.location.clone(),
            site,
            device: self.device(raw),
            netns: (raw.netns != 0).then_some(raw.netns),
            rejected: raw.has(flags::REJECTED),
            visible_rejects: self.answers,
        }
    }

    /// The name of the packet's device.
    fn device(&mut self, site: &RawSite) -> Option<Str> {
        if !site.has(flags::DEVICE) || site.device[0].to_ne_bytes()[0] == 0 {
            return None;
        }
        if let Some(name) = self.devices.get(&site.device) {
            return Some(name.clone());
        }
        if self.devices.len() >= MAX_CALL_SITES {
            self.devices.clear();
        }
        let bytes: Vec<u8> = site.device.iter().flat_map(|word| word.to_ne_bytes()).take_while(|b| *b != 0).collect();
        let name: Str = String::from_utf8_lossy(&bytes).into();
        self.devices.insert(site.device, name.clone());
        Some(name)
    }
}

/// The numbers on which a call site's names depend.
fn key(site: &RawSite) -> (u32, u64, u64) {
    (site.reason, site.location, site.dst_input)
}
