//! The drop taxonomy: which drops are recorded, and which mechanism and hook follow from a drop's reason and call site.
//!
//! The tables have names, because the values of reasons and the addresses of functions differ between kernels.

use netpol_trace_common::{LOCATIONS, Locations, REASON_OTHER, REASONS, ReasonFilter};

use super::layout::Reasons;
use super::symbols::Symbols;
use crate::model::{Candidate, Hook, Mechanism, Site};

/// Reasons of drops that a policy may have made, at every call site. A cgroup's ingress program and a socket's own filter share
/// SOCKET_FILTER.
const POLICY_REASONS: [&str; 5] = ["NETFILTER_DROP", "TC_INGRESS", "TC_EGRESS", "BPF_CGROUP_EGRESS", "SOCKET_FILTER"];
/// Functions whose unspecific drops a policy may have made, on every kernel.
const POLICY_LOCATIONS: [&str; 6] =
    ["nfqnl_reinject", "nf_reinject", "nf_queue", "veth_xdp_rcv_skb", "do_xdp_generic", NETKIT];
/// The function in which a netkit device (from 6.7) runs its programs and frees what they drop. These drops have no reason of their own.
const NETKIT: &str = "netkit_xmit";
/// Open vSwitch's reasons of packets that its flows drop. Its others are errors and limits.
const OVS_POLICY_REASONS: [&str; 2] = ["OVS_DROP_LAST_ACTION", "OVS_DROP_EXPLICIT"];
/// The same on kernels without a reason for netfilter's drops (to 5.17), where the compiler inlined XDP's functions into their callers.
const POLICY_LOCATIONS_BEFORE_REASONS: [&str; 9] = [
    "nf_hook_slow",
    "nf_hook_slow_list",
    "__netif_receive_skb_core",
    "__dev_queue_xmit",
    "netif_receive_generic_xdp",
    "veth_xdp_rcv",
    "veth_poll",
    "ip_finish_output",
    "ip6_finish_output",
];
/// Functions whose unspecific drops have another cause than policy: recorded with `--all-drops`.
const OTHER_LOCATIONS: [&str; 4] = ["ip_error", "ip6_pkt_drop", "dst_discard_out", "ip_forward"];
/// Reasons that healthy traffic causes all the time: never recorded.
const NOISE_REASONS: [&str; 12] = [
    "NOT_DROPPED_YET",
    "CONSUMED",
    "QUEUE_PURGE",
    "TCP_OLD_DATA",
    "TCP_OLD_ACK",
    "TCP_OFOMERGE",
    "TCP_OVERWINDOW",
    "TCP_ACK_UNSENT_DATA",
    "TCP_OFO_DROP",
    "TCP_OFO_QUEUE_PRUNE",
    "PACKET_SOCK_ERROR",
    "DUP_FRAG",
];
/// Functions whose drops are noise whatever the reason: the kernel frees the reply of each ping there.
const NOISE_LOCATIONS: [&str; 1] = ["ping_rcv"];

/// The bitmaps of reasons for the programs.
pub fn bitmaps(reasons: &Reasons, all_drops: bool) -> ReasonFilter {
    let mut filter = ReasonFilter::default();
    let mut set = |bits: fn(&mut ReasonFilter) -> &mut [u64; REASONS / 64], value: u32| {
        if let Some(word) = bits(&mut filter).get_mut(value as usize / 64) {
            *word |= 1 << (value % 64);
        }
    };
    for (value, name) in reasons.iter().filter(|(value, _)| *value < REASONS as u32) {
        if is_unspecific(Some(name)) {
            set(|f| &mut f.by_location, value);
        } else if POLICY_REASONS.contains(&name) || all_drops && !NOISE_REASONS.contains(&name) {
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
pub fn location_names(reasons: &Reasons, all_drops: bool) -> Vec<&'static str> {
    let mut names = POLICY_LOCATIONS.to_vec();
    if !reasons.has("NETFILTER_DROP") {
        names.extend(POLICY_LOCATIONS_BEFORE_REASONS);
    }
    if all_drops {
        names.extend(OTHER_LOCATIONS);
    }
    names
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

/// True if the reason is unspecific, so that the call site decides.
pub fn is_unspecific(reason: Option<&str>) -> bool {
    reason.is_none_or(|reason| reason == "NOT_SPECIFIED")
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

/// Decides mechanism, hook and candidate from reason, call site and route.
pub fn classify(evidence: &SiteEvidence<'_>) -> Site {
    let location = evidence.location.unwrap_or_default();
    let reason = evidence.reason.unwrap_or_default();
    let (mechanism, candidate) = match (reason, location) {
        (_, "nf_queue") => (Mechanism::Nfqueue, Candidate::Outage),
        // A listener's verdict is carried out by its own process. When it dies, a kernel thread drops the packets in its queue.
        (_, "nfqnl_reinject" | "nf_reinject") if evidence.kernel_thread => (Mechanism::Nfqueue, Candidate::Outage),
        (_, "nfqnl_reinject" | "nf_reinject") => (Mechanism::Nfqueue, Candidate::Policy),
        ("NETFILTER_DROP", "nft_do_chain") => (Mechanism::Nftables, Candidate::Policy),
        ("NETFILTER_DROP" | "", "nf_hook_slow" | "nf_hook_slow_list") if evidence.nft_has_location => {
            (Mechanism::IptablesLegacy, Candidate::Policy)
        }
        ("NETFILTER_DROP", _) | ("", "nf_hook_slow" | "nf_hook_slow_list") => (Mechanism::Netfilter, Candidate::Policy),
        ("TC_INGRESS" | "TC_EGRESS", _) | ("", "__netif_receive_skb_core" | "__dev_queue_xmit") => {
            (Mechanism::Tc, Candidate::Maybe)
        }
        ("BPF_CGROUP_EGRESS" | "SOCKET_FILTER", _) => (Mechanism::Cgroup, Candidate::Maybe),
        (_, "veth_xdp_rcv_skb" | "do_xdp_generic")
        | ("", "netif_receive_generic_xdp" | "veth_xdp_rcv" | "veth_poll") => (Mechanism::Xdp, Candidate::Maybe),
        // The last thing that can drop a packet there is the cgroup's egress program.
        ("", "ip_finish_output" | "ip6_finish_output") => (Mechanism::Cgroup, Candidate::Maybe),
        (_, NETKIT) => (Mechanism::Tc, Candidate::Maybe),
        (reason, _) if OVS_POLICY_REASONS.contains(&reason) => (Mechanism::Ovs, Candidate::Policy),
        (reason, _) if reason.starts_with("OVS_DROP") => (Mechanism::Ovs, Candidate::No),
        (_, location) if NOISE_LOCATIONS.contains(&location) => (Mechanism::Unknown, Candidate::Noise),
        // The reply of a ping, freed by the caller of ping_rcv (6.1).
        ("NO_SOCKET", "icmp_rcv" | "icmpv6_rcv") => (Mechanism::Unknown, Candidate::Noise),
        _ => (Mechanism::Unknown, Candidate::No),
    };
    Site { mechanism, candidate, hook: hook(evidence, mechanism, reason, location) }
}

/// The hook, which follows from the route that the packet has at that point. `None` if two hooks look alike.
fn hook(evidence: &SiteEvidence<'_>, mechanism: Mechanism, reason: &str, location: &str) -> Option<Hook> {
    match (mechanism, reason, location) {
        // A netkit device has already given the packet to the receiving end when its programs run.
        (_, "TC_INGRESS", _) | (Mechanism::Xdp, ..) | (Mechanism::Tc, _, "__netif_receive_skb_core" | NETKIT) => {
            return Some(Hook::Ingress);
        }
        (_, "TC_EGRESS", _) | (Mechanism::Tc, ..) => return Some(Hook::Egress),
        (Mechanism::Cgroup, "SOCKET_FILTER", _) => return Some(Hook::Input),
        (Mechanism::Cgroup, ..) => return Some(Hook::Output),
        (Mechanism::Unknown | Mechanism::Ovs, ..) => return None,
        _ => {}
    }
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
    fn mechanisms() {
        let check = |reason, location, mechanism, candidate| {
            let site = classify(&evidence(reason, location, "ip_forward"));
            assert_eq!((site.mechanism, site.candidate), (mechanism, candidate), "{reason} {location}");
        };
        check("NETFILTER_DROP", "nft_do_chain", Mechanism::Nftables, Candidate::Policy);
        check("NETFILTER_DROP", "nf_hook_slow", Mechanism::IptablesLegacy, Candidate::Policy);
        check("NOT_SPECIFIED", "nfqnl_reinject", Mechanism::Nfqueue, Candidate::Policy);
        check("NOT_SPECIFIED", "nf_queue", Mechanism::Nfqueue, Candidate::Outage);
        let dying = SiteEvidence { kernel_thread: true, ..evidence("NOT_SPECIFIED", "nfqnl_reinject", "ip_forward") };
        assert_eq!(classify(&dying).candidate, Candidate::Outage, "the listener is gone");
        check("TC_INGRESS", "__netif_receive_skb_core", Mechanism::Tc, Candidate::Maybe);
        check("NOT_SPECIFIED", "netkit_xmit", Mechanism::Tc, Candidate::Maybe);
        check("OVS_DROP_LAST_ACTION", "do_execute_actions", Mechanism::Ovs, Candidate::Policy);
        check("OVS_DROP_METER", "do_execute_actions", Mechanism::Ovs, Candidate::No);
        check("NO_SOCKET", "tcp_v4_rcv", Mechanism::Unknown, Candidate::No);
        check("NO_SOCKET", "icmp_rcv", Mechanism::Unknown, Candidate::Noise);
        check("", "ip_finish_output", Mechanism::Cgroup, Candidate::Maybe);
        check("NOT_SPECIFIED", "ip_finish_output", Mechanism::Unknown, Candidate::No);
        check("", "nf_hook_slow", Mechanism::IptablesLegacy, Candidate::Policy);
        let old = SiteEvidence { nft_has_location: false, ..evidence("NETFILTER_DROP", "nf_hook_slow", "ip_forward") };
        assert_eq!(classify(&old).mechanism, Mechanism::Netfilter, "before 6.7 nft drops are located there too");
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
