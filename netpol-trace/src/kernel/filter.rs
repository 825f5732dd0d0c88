//! Which drops are interesting, and what a drop's reason and location say: drop-taxonomy in code.
//!
//! Names, not numbers: values of reasons and addresses of functions differ between kernels and are resolved at start.

use netpol_trace_common::{Filter, LOCATIONS, Locations, REASON_OTHER, REASONS};

use super::layout::Reasons;
use super::symbols::Symbols;
use crate::model::{Candidate, Hook, Mechanism, Site};

/// Reasons of drops that a policy may have made, wherever they happen. A cgroup's ingress program and a socket's own
/// filter share SOCKET_FILTER.
const POLICY_REASONS: [&str; 5] = ["NETFILTER_DROP", "TC_INGRESS", "TC_EGRESS", "BPF_CGROUP_EGRESS", "SOCKET_FILTER"];
/// Functions whose unspecific drops a policy may have made, on every kernel.
const POLICY_LOCATIONS: [&str; 6] =
    ["nfqnl_reinject", "nf_reinject", "nf_queue", "veth_xdp_rcv_skb", "do_xdp_generic", NETKIT];
/// Where a netkit device (from 6.7) runs its programs, between its two ends, and frees what they drop. No reason says so.
const NETKIT: &str = "netkit_xmit";
/// Open vSwitch's reasons of packets that its flows drop. Its others are errors and limits.
const OVS_POLICY_REASONS: [&str; 2] = ["OVS_DROP_LAST_ACTION", "OVS_DROP_EXPLICIT"];
/// The same on kernels that give netfilter's drops no reason (to 5.17), where the compiler also put XDP's into their callers.
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
/// Unspecific drops that have another cause than policy: recorded with `--all-drops`.
const OTHER_LOCATIONS: [&str; 4] = ["ip_error", "ip6_pkt_drop", "dst_discard_out", "ip_forward"];
/// What healthy traffic does all the time: never recorded.
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
/// Functions where an otherwise telling reason is noise: each answered ping ends so.
const NOISE_LOCATIONS: [&str; 1] = ["ping_rcv"];

/// The bitmaps that the programs test.
pub fn bitmaps(reasons: &Reasons, all_drops: bool) -> Filter {
    let mut filter = Filter::default();
    let mut set = |bits: fn(&mut Filter) -> &mut [u64; REASONS / 64], value: u32| {
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
    let Filter { anywhere, by_location, either } = &mut filter;
    either.iter_mut().zip(anywhere).zip(by_location).for_each(|((either, one), other)| *either |= *one | *other);
    filter
}

/// The functions whose unspecific drops are interesting.
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

/// The same as code. The count says how many ranges found no room.
pub fn locations(symbols: &Symbols, names: &[&str]) -> (Locations, usize) {
    let ranges = symbols.ranges(names);
    let mut locations = Locations { image: symbols.image(), ..Locations::default() };
    for (slot, range) in locations.ranges.iter_mut().zip(&ranges) {
        *slot = *range;
    }
    (locations, ranges.len().saturating_sub(LOCATIONS))
}

/// Whether a drop's reason says nothing, so that its place must.
pub fn is_unspecific(reason: Option<&str>) -> bool {
    reason.is_none_or(|reason| reason == "NOT_SPECIFIED")
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

/// Joins reason, location and route into mechanism, hook and whether a policy may be behind it.
pub fn classify(place: &Place<'_>) -> Site {
    let location = place.location.unwrap_or_default();
    let reason = place.reason.unwrap_or_default();
    let (mechanism, candidate) = match (reason, location) {
        (_, "nf_queue") => (Mechanism::Nfqueue, Candidate::Outage),
        // A listener gives its verdict itself; what is still queued when it dies is dropped by a kernel thread.
        (_, "nfqnl_reinject" | "nf_reinject") if place.kernel_thread => (Mechanism::Nfqueue, Candidate::Outage),
        (_, "nfqnl_reinject" | "nf_reinject") => (Mechanism::Nfqueue, Candidate::Policy),
        ("NETFILTER_DROP", "nft_do_chain") => (Mechanism::Nftables, Candidate::Policy),
        ("NETFILTER_DROP" | "", "nf_hook_slow" | "nf_hook_slow_list") if place.nft_has_location => {
            (Mechanism::IptablesLegacy, Candidate::Policy)
        }
        ("NETFILTER_DROP", _) | ("", "nf_hook_slow" | "nf_hook_slow_list") => (Mechanism::Netfilter, Candidate::Policy),
        ("TC_INGRESS" | "TC_EGRESS", _) | ("", "__netif_receive_skb_core" | "__dev_queue_xmit") => {
            (Mechanism::Tc, Candidate::Maybe)
        }
        ("BPF_CGROUP_EGRESS" | "SOCKET_FILTER", _) => (Mechanism::Cgroup, Candidate::Maybe),
        (_, "veth_xdp_rcv_skb" | "do_xdp_generic")
        | ("", "netif_receive_generic_xdp" | "veth_xdp_rcv" | "veth_poll") => (Mechanism::Xdp, Candidate::Maybe),
        // The cgroup's egress program is the last that can end a packet there.
        ("", "ip_finish_output" | "ip6_finish_output") => (Mechanism::Cgroup, Candidate::Maybe),
        (_, NETKIT) => (Mechanism::Tc, Candidate::Maybe),
        (reason, _) if OVS_POLICY_REASONS.contains(&reason) => (Mechanism::Ovs, Candidate::Policy),
        (reason, _) if reason.starts_with("OVS_DROP") => (Mechanism::Ovs, Candidate::No),
        (_, location) if NOISE_LOCATIONS.contains(&location) => (Mechanism::Unknown, Candidate::Noise),
        // The same answered ping, freed by its caller (6.1).
        ("NO_SOCKET", "icmp_rcv" | "icmpv6_rcv") => (Mechanism::Unknown, Candidate::Noise),
        _ => (Mechanism::Unknown, Candidate::No),
    };
    Site { mechanism, candidate, hook: hook(place, mechanism, reason, location) }
}

/// The hook, from the route that the packet has got by then. `None` where two hooks look the same.
fn hook(place: &Place<'_>, mechanism: Mechanism, reason: &str, location: &str) -> Option<Hook> {
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
    fn mechanisms() {
        let check = |reason, location, mechanism, candidate| {
            let site = classify(&place(reason, location, "ip_forward"));
            assert_eq!((site.mechanism, site.candidate), (mechanism, candidate), "{reason} {location}");
        };
        check("NETFILTER_DROP", "nft_do_chain", Mechanism::Nftables, Candidate::Policy);
        check("NETFILTER_DROP", "nf_hook_slow", Mechanism::IptablesLegacy, Candidate::Policy);
        check("NOT_SPECIFIED", "nfqnl_reinject", Mechanism::Nfqueue, Candidate::Policy);
        check("NOT_SPECIFIED", "nf_queue", Mechanism::Nfqueue, Candidate::Outage);
        let dying = Place { kernel_thread: true, ..place("NOT_SPECIFIED", "nfqnl_reinject", "ip_forward") };
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
        let old = Place { nft_has_location: false, ..place("NETFILTER_DROP", "nf_hook_slow", "ip_forward") };
        assert_eq!(classify(&old).mechanism, Mechanism::Netfilter, "before 6.7 nft drops are located there too");
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
        let blob = crate::require!(super::super::btf::tests::vmlinux());
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
