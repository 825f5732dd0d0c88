//! Resolves the drop taxonomy ([`crate::model::drop_taxonomy`]) for the running kernel: bitmaps of reasons and code ranges for the
//! programs' filter, and the drop site of each event.

use netpol_trace_common::{Filter, LOCATIONS, Locations, REASON_OTHER, REASONS};

use super::layout::Reasons;
use super::symbols::Symbols;
use crate::model::drop_taxonomy::{self, HookSource, Observed, is_unspecific};
use crate::model::{DropSite, Hook, PolicyRelevance};

/// The bitmaps that the programs test.
pub fn bitmaps(reasons: &Reasons, all_drops: bool) -> Filter {
    let mut filter = Filter::default();
    let mut set = |bits: fn(&mut Filter) -> &mut [u64; REASONS / 64], value: u32| {
        if let Some(word) = bits(&mut filter).get_mut(value as usize / 64) {
            *word |= 1 << (value % 64);
        }
    };
    for (value, name) in reasons.iter().filter(|(value, _)| *value < REASONS as u32) {
        let relevance = drop_taxonomy::relevance_of_reason(name);
        if is_unspecific(Some(name)) {
            set(|f| &mut f.by_location, value);
        } else if relevance.is_some_and(PolicyRelevance::needs_verdict)
            || all_drops && relevance != Some(PolicyRelevance::Noise)
        {
            set(|f| &mut f.anywhere, value);
        }
    }
    if !reasons.known() {
        set(|f| &mut f.by_location, REASON_OTHER);
    }
    if reasons.ovs_subsystem != 0 {
        set(|f| &mut f.either, REASON_OTHER);
    }
    let Filter { anywhere, by_location, either } = &mut filter;
    either.iter_mut().zip(anywhere).zip(by_location).for_each(|((either, one), other)| *either |= *one | *other);
    filter
}

/// The functions whose unspecific drops are interesting.
pub fn location_names(reasons: &Reasons, all_drops: bool) -> Vec<&'static str> {
    drop_taxonomy::call_sites(reasons.has("NETFILTER_DROP"), all_drops)
}

/// The same as code. The count says how many ranges found no room.
pub fn locations(symbols: &Symbols, names: &[&str]) -> (Locations, usize) {
    let ranges = symbols.ranges(names);
    let mut locations = Locations { image: symbols.image(), ..Locations::default() };
    for (slot, range) in locations.ranges.iter_mut().zip(&ranges) {
        *slot = *range;
    }
    (locations, ranges.len().saturating_sub(LOCATIONS))
}

/// What is known of the place of one drop before its packet is read.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub reason: Option<&'a str>,
    pub location: Option<&'a str>,
    /// The function that `dst->input` points to.
    pub input: Option<&'a str>,
    pub has_dst: bool,
    pub has_device: bool,
    /// `skb->sk` is set: a local sender's, which may be in another network namespace.
    pub has_socket: bool,
    /// Conntrack has seen the packet.
    pub has_conntrack: bool,
    /// `skb->data` is at the link layer's header, not at IP's.
    pub at_link_layer: bool,
    /// A kernel thread was running, not a process.
    pub kernel_thread: bool,
    pub ifindex: u32,
    pub iif: u32,
    pub out_ifindex: u32,
    /// This kernel locates nft's own drops in nft_do_chain, so nf_hook_slow is somebody else's. True from 6.7 on; some
    /// distributions have it earlier, so there it is known once such a drop was seen.
    pub nft_has_location: bool,
}

/// Returns the drop site: the row of the taxonomy, and the hook that it leaves to the route.
pub fn classify(place: &Place<'_>) -> DropSite {
    let class = drop_taxonomy::classify(&Observed {
        reason: place.reason,
        call_site: place.location,
        kernel_thread: place.kernel_thread,
        nft_has_location: place.nft_has_location,
    });
    let hook = match class.hook {
        HookSource::Is(hook) => Some(hook),
        HookSource::Route => hook_by_route(place),
        HookSource::Unknown => None,
    };
    DropSite { mechanism: class.mechanism, relevance: class.relevance, hook }
}

/// Returns the netfilter hook, from the route that the packet has got by then. `None` where two hooks look the same.
fn hook_by_route(place: &Place<'_>) -> Option<Hook> {
    if !place.has_device {
        // Nothing but the local stack sends packets that have no device yet.
        return place.has_dst.then_some(Hook::Output);
    }
    if !place.has_dst {
        return match place {
            // Only a bridge gives a packet another device before it has a route.
            _ if place.ifindex != place.iif => Some(Hook::Bridge),
            _ if place.has_conntrack => Some(Hook::Prerouting),
            // ip_rcv takes the sender's socket off the packet; the device's ingress comes before it.
            _ if place.has_socket => Some(Hook::Ingress),
            _ => None,
        };
    }
    if place.at_link_layer {
        return Some(Hook::Egress);
    }
    if place.iif == 0 {
        // It never came in: POSTROUTING, or OUTPUT where IPv6's REJECT lends it the loopback device.
        return Some(if place.ifindex == place.out_ifindex { Hook::Postrouting } else { Hook::Output });
    }
    let leaving = place.ifindex == place.out_ifindex && place.iif != place.ifindex;
    match place.input {
        Some("ip_forward" | "ip6_forward" | "ip_mr_input" | "ip6_mr_input") if leaving => Some(Hook::Postrouting),
        Some("ip_forward" | "ip6_forward" | "ip_mr_input" | "ip6_mr_input") => Some(Hook::Forward),
        Some("ip_local_deliver" | "ip6_input" | "ip6_mc_input") => Some(Hook::Input),
        Some("dst_discard") => Some(Hook::Postrouting),
        // br_netfilter lends bridged packets a dst without functions.
        None => Some(Hook::Bridge),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place<'a>(reason: &'a str, location: &'a str, input: &'a str) -> Place<'a> {
        let some = |s: &'a str| (!s.is_empty()).then_some(s);
        Place {
            reason: some(reason),
            location: some(location),
            input: some(input),
            has_dst: !input.is_empty(),
            has_device: true,
            has_socket: false,
            has_conntrack: true,
            at_link_layer: false,
            kernel_thread: false,
            ifindex: 2,
            iif: 2,
            out_ifindex: 3,
            nft_has_location: true,
        }
    }

    #[test]
    fn hooks() {
        let hook = |place: Place<'_>| classify(&place).hook;
        let nft = |input| place("NETFILTER_DROP", "nft_do_chain", input);
        assert_eq!(hook(nft("ip_forward")), Some(Hook::Forward));
        assert_eq!(hook(nft("ip6_input")), Some(Hook::Input));
        assert_eq!(hook(nft("")), Some(Hook::Prerouting));
        assert_eq!(hook(Place { ifindex: 3, ..nft("ip_forward") }), Some(Hook::Postrouting));
        assert_eq!(hook(Place { has_device: false, ifindex: 0, iif: 0, ..nft("dst_discard") }), Some(Hook::Output));
        assert_eq!(hook(Place { iif: 0, ifindex: 3, ..nft("dst_discard") }), Some(Hook::Postrouting));
        assert_eq!(hook(Place { iif: 0, ifindex: 1, ..nft("dst_discard") }), Some(Hook::Output), "IPv6 REJECT");
        assert_eq!(hook(Place { ifindex: 3, at_link_layer: true, ..nft("ip_forward") }), Some(Hook::Egress));
        assert_eq!(hook(Place { has_device: false, ..nft("ip_local_deliver") }), Some(Hook::Output), "to itself");
        let early = Place { has_conntrack: false, ..nft("") };
        assert_eq!(hook(early), None, "netdev ingress or early PREROUTING");
        assert_eq!(hook(Place { has_socket: true, ..early }), Some(Hook::Ingress));
        assert_eq!(hook(Place { has_socket: true, iif: 4, ..early }), Some(Hook::Bridge));
        assert_eq!(hook(place("TC_EGRESS", "__dev_queue_xmit", "ip_forward")), Some(Hook::Egress));
        assert_eq!(hook(place("NOT_SPECIFIED", "netkit_xmit", "")), Some(Hook::Ingress));
    }

    #[test]
    fn only_policy_reasons_pass_by_default() {
        let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("skipped: this kernel has no /sys/kernel/btf/vmlinux");
            return;
        };
        let reasons =
            super::super::layout::Layout::from_btf(&super::super::btf::Btf::parse(&blob).unwrap()).unwrap().reasons;
        let value = |name: &str| reasons.iter().find(|(_, n)| *n == name).map(|(v, _)| v);
        let (default, all) = (bitmaps(&reasons, false), bitmaps(&reasons, true));
        if let (Some(drop), Some(socket)) = (value("NETFILTER_DROP"), value("NO_SOCKET")) {
            assert!(Filter::has(&default.anywhere, drop) && Filter::has(&all.anywhere, drop));
            assert!(!Filter::has(&default.anywhere, socket) && Filter::has(&all.anywhere, socket));
        }
        assert!(value("QUEUE_PURGE").is_none_or(|purge| !Filter::has(&all.anywhere, purge)));
    }
}
