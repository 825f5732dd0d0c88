//! Resolves the drop taxonomy ([`crate::model::drop_taxonomy`]) for the running kernel: bitmaps of reasons and code ranges for the
//! programs' filter, and the drop site of each event.

use netpol_trace_common::{LOCATIONS, Locations, REASON_OTHER, REASONS, ReasonFilter};

use super::layout::ReasonNumbers;
use super::symbols::Symbols;
use crate::model::drop_taxonomy::{self, HookSource, Observed, is_unspecific};
use crate::model::{DropSite, Hook, PolicyRelevance};

/// The bitmaps of reasons for the programs.
pub fn bitmaps(reasons: &ReasonNumbers, all_drops: bool) -> ReasonFilter {
    let mut filter = ReasonFilter::default();
    let mut set = |bits: fn(&mut ReasonFilter) -> &mut [u64; REASONS / 64], value: u32| {
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
    let ReasonFilter { anywhere, by_location, either } = &mut filter;
    either.iter_mut().zip(anywhere).zip(by_location).for_each(|((either, one), other)| *either |= *one | *other);
    filter
}

/// The functions whose unspecific drops are recorded.
pub fn location_names(reasons: &ReasonNumbers, all_drops: bool) -> Vec<&'static str> {
    drop_taxonomy::call_sites(reasons.has("NETFILTER_DROP"), all_drops)
}

/// The code ranges of these functions, and how many ranges found no room.
pub fn locations(symbols: &Symbols, names: &[&str]) -> (Locations, usize) {
    let ranges = symbols.ranges(names);
    let mut locations = Locations { image: symbols.image(), ..Locations::default() };
    for (slot, range) in locations.ranges.iter_mut().zip(&ranges) {
        *slot = *range;
    }
    (locations, ranges.len().saturating_sub(LOCATIONS))
}

/// The facts about a drop from which its mechanism and hook follow.
#[derive(Debug, Clone, Copy)]
pub struct SiteEvidence<'a> {
    pub reason: Option<&'a str>,
    pub location: Option<&'a str>,
    /// The function that `dst->input` points to.
    pub input: Option<&'a str>,
    pub has_dst: bool,
    pub has_device: bool,
    /// `skb->sk` is set: the sender is local, maybe in another network namespace.
    pub has_socket: bool,
    /// Conntrack has seen the packet.
    pub has_conntrack: bool,
    /// `skb->data` points to the link layer's header and not to IP's.
    pub at_link_layer: bool,
    /// The current task was a kernel thread and not a process.
    pub kernel_thread: bool,
    pub ifindex: u32,
    pub iif: u32,
    pub out_ifindex: u32,
    /// On this kernel the call site of nftables' drops is nft_do_chain, so that drops in nf_hook_slow are not nftables'. True from 6.7 on.
    /// Some distributions have it earlier: there it becomes true with the first such drop.
    pub nft_has_location: bool,
}

/// Decides the drop site: the row of the taxonomy, and the hook where the row leaves it to the route.
pub fn classify(evidence: &SiteEvidence<'_>) -> DropSite {
    let class = drop_taxonomy::classify(&Observed {
        reason: evidence.reason,
        call_site: evidence.location,
        kernel_thread: evidence.kernel_thread,
        nft_has_location: evidence.nft_has_location,
    });
    let hook = match class.hook {
        HookSource::Is(hook) => Some(hook),
        HookSource::Route => hook_by_route(evidence),
        HookSource::Unknown => None,
    };
    DropSite { mechanism: class.mechanism, relevance: class.relevance, hook }
}

/// The netfilter hook, which follows from the route that the packet has at that point. `None` if two hooks look alike.
fn hook_by_route(evidence: &SiteEvidence<'_>) -> Option<Hook> {
    if !evidence.has_device {
        // Only packets of the local stack have no device yet.
        return evidence.has_dst.then_some(Hook::Output);
    }
    if !evidence.has_dst {
        return match evidence {
            // Only a bridge gives a packet another device before it has a route.
            _ if evidence.ifindex != evidence.iif => Some(Hook::Bridge),
            _ if evidence.has_conntrack => Some(Hook::Prerouting),
            // ip_rcv detaches the sender's socket from the packet; the device's ingress hook comes before it.
            _ if evidence.has_socket => Some(Hook::Ingress),
            _ => None,
        };
    }
    if evidence.at_link_layer {
        return Some(Hook::Egress);
    }
    if evidence.iif == 0 {
        // The packet is local: POSTROUTING, or OUTPUT, where IPv6's REJECT sets the loopback device.
        return Some(if evidence.ifindex == evidence.out_ifindex { Hook::Postrouting } else { Hook::Output });
    }
    let leaving = evidence.ifindex == evidence.out_ifindex && evidence.iif != evidence.ifindex;
    match evidence.input {
        Some("ip_forward" | "ip6_forward" | "ip_mr_input" | "ip6_mr_input") if leaving => Some(Hook::Postrouting),
        Some("ip_forward" | "ip6_forward" | "ip_mr_input" | "ip6_mr_input") => Some(Hook::Forward),
        Some("ip_local_deliver" | "ip6_input" | "ip6_mc_input") => Some(Hook::Input),
        Some("dst_discard") => Some(Hook::Postrouting),
        // br_netfilter gives bridged packets a dst without functions.
        None => Some(Hook::Bridge),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence<'a>(reason: &'a str, location: &'a str, input: &'a str) -> SiteEvidence<'a> {
        let some = |s: &'a str| (!s.is_empty()).then_some(s);
        SiteEvidence {
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
        let hook = |evidence: SiteEvidence<'_>| classify(&evidence).hook;
        let nft = |input| evidence("NETFILTER_DROP", "nft_do_chain", input);
        assert_eq!(hook(nft("ip_forward")), Some(Hook::Forward));
        assert_eq!(hook(nft("ip6_input")), Some(Hook::Input));
        assert_eq!(hook(nft("")), Some(Hook::Prerouting));
        assert_eq!(hook(SiteEvidence { ifindex: 3, ..nft("ip_forward") }), Some(Hook::Postrouting));
        assert_eq!(
            hook(SiteEvidence { has_device: false, ifindex: 0, iif: 0, ..nft("dst_discard") }),
            Some(Hook::Output)
        );
        assert_eq!(hook(SiteEvidence { iif: 0, ifindex: 3, ..nft("dst_discard") }), Some(Hook::Postrouting));
        assert_eq!(hook(SiteEvidence { iif: 0, ifindex: 1, ..nft("dst_discard") }), Some(Hook::Output), "IPv6 REJECT");
        assert_eq!(hook(SiteEvidence { ifindex: 3, at_link_layer: true, ..nft("ip_forward") }), Some(Hook::Egress));
        assert_eq!(
            hook(SiteEvidence { has_device: false, ..nft("ip_local_deliver") }),
            Some(Hook::Output),
            "to itself"
        );
        let early = SiteEvidence { has_conntrack: false, ..nft("") };
        assert_eq!(hook(early), None, "netdev ingress or early PREROUTING");
        assert_eq!(hook(SiteEvidence { has_socket: true, ..early }), Some(Hook::Ingress));
        assert_eq!(hook(SiteEvidence { has_socket: true, iif: 4, ..early }), Some(Hook::Bridge));
        assert_eq!(hook(evidence("TC_EGRESS", "__dev_queue_xmit", "ip_forward")), Some(Hook::Egress));
        assert_eq!(hook(evidence("NOT_SPECIFIED", "netkit_xmit", "")), Some(Hook::Ingress));
    }

    #[test]
    fn only_policy_reasons_pass_by_default() {
        let blob = crate::require!(super::super::btf::vmlinux());
        let reasons =
            super::super::layout::Layout::from_btf(&super::super::btf::Btf::parse(&blob).unwrap()).unwrap().reasons;
        let value = |name: &str| reasons.iter().find(|(_, n)| *n == name).map(|(v, _)| v);
        let (default, all) = (bitmaps(&reasons, false), bitmaps(&reasons, true));
        if let (Some(drop), Some(socket)) = (value("NETFILTER_DROP"), value("NO_SOCKET")) {
            assert!(ReasonFilter::has(&default.anywhere, drop) && ReasonFilter::has(&all.anywhere, drop));
            assert!(!ReasonFilter::has(&default.anywhere, socket) && ReasonFilter::has(&all.anywhere, socket));
        }
        assert!(value("QUEUE_PURGE").is_none_or(|purge| !ReasonFilter::has(&all.anywhere, purge)));
    }
}
