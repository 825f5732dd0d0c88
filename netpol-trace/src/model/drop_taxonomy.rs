//! The drop taxonomy: what a drop reason and the function that freed the packet mean. The kernel side's filter and the classification of
//! a drop both read [`TABLE`].
//!
//! The table has names, not numbers: values of reasons and addresses of functions differ between kernels and are resolved at start.

use super::{Hook, Mechanism, PolicyRelevance};

/// The drop reasons that a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasons {
    /// Every reason, also an unspecific one.
    Any,
    /// This reason, without `SKB_DROP_REASON_`.
    Is(&'static str),
    /// Reasons that begin so.
    BeginsWith(&'static str),
    /// This kernel gives such a drop no reason: before Linux 5.17, or 5.18 for tc and XDP.
    Absent,
    /// `NOT_SPECIFIED`, or no reason at all: the call site has to decide.
    Unspecific,
}

/// What a row needs besides reason and call site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// A kernel thread was running, not a process.
    KernelThread,
    /// This kernel locates nftables' own drops in `nft_do_chain`.
    NftHasLocation,
}

/// How the hook of a drop is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookSource {
    /// Always this hook.
    Is(Hook),
    /// From the route that the packet has got by then.
    Route,
    /// It cannot be known.
    Unknown,
}

/// One row: drops with these reasons at these call sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropClass {
    pub reasons: Reasons,
    /// Kernel functions; empty means any.
    pub call_sites: &'static [&'static str],
    pub condition: Condition,
    pub mechanism: Mechanism,
    pub relevance: PolicyRelevance,
    pub hook: HookSource,
}

/// What [`classify`] knows of a drop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observed<'a> {
    pub reason: Option<&'a str>,
    pub call_site: Option<&'a str>,
    /// See [`Condition::KernelThread`].
    pub kernel_thread: bool,
    /// See [`Condition::NftHasLocation`].
    pub nft_has_location: bool,
}

/// The call sites of rows that more than one place names.
const NF_HOOK_SLOW: &[&str] = &["nf_hook_slow", "nf_hook_slow_list"];
const REINJECT: &[&str] = &["nfqnl_reinject", "nf_reinject"];

/// The first row that fits a drop counts.
pub const TABLE: &[DropClass] = {
    use self::HookSource::{Is as At, Route};
    use Condition::{Always, KernelThread, NftHasLocation};
    use Hook::{Egress, Ingress, Input, Output};
    use Mechanism::{Cgroup, IptablesLegacy, Netfilter, Nfqueue, Nftables, Ovs, Tc, Xdp};
    use PolicyRelevance::{EnforcerDown, Irrelevant, Likely, Noise, Possible};
    use Reasons::{Absent, Any, BeginsWith, Is, Unspecific};
    const UNKNOWN: HookSource = HookSource::Unknown;
    &[
        row(Is("NETFILTER_DROP"), &["nft_do_chain"], Always, Nftables, Likely, Route),
        row(Any, &["nf_queue"], Always, Nfqueue, EnforcerDown, Route),
        // A listener gives its verdict itself. A kernel thread drops what is still queued when the listener dies.
        row(Any, REINJECT, KernelThread, Nfqueue, EnforcerDown, Route),
        row(Any, REINJECT, Always, Nfqueue, Likely, Route),
        row(Is("NETFILTER_DROP"), NF_HOOK_SLOW, NftHasLocation, IptablesLegacy, Likely, Route),
        row(Absent, NF_HOOK_SLOW, NftHasLocation, IptablesLegacy, Likely, Route),
        row(Is("NETFILTER_DROP"), &[], Always, Netfilter, Likely, Route),
        row(Absent, NF_HOOK_SLOW, Always, Netfilter, Likely, Route),
        row(Is("TC_INGRESS"), &[], Always, Tc, Possible, At(Ingress)),
        row(Is("TC_EGRESS"), &[], Always, Tc, Possible, At(Egress)),
        row(Absent, &["__netif_receive_skb_core"], Always, Tc, Possible, At(Ingress)),
        row(Absent, &["__dev_queue_xmit"], Always, Tc, Possible, At(Egress)),
        row(Is("BPF_CGROUP_EGRESS"), &[], Always, Cgroup, Possible, At(Output)),
        // A cgroup's ingress program and a socket's own filter share this reason.
        row(Is("SOCKET_FILTER"), &[], Always, Cgroup, Possible, At(Input)),
        row(Any, &["veth_xdp_rcv_skb", "do_xdp_generic"], Always, Xdp, Possible, At(Ingress)),
        // Before Linux 5.18 the compiler put XDP's drops into the callers of its functions.
        row(Absent, &["netif_receive_generic_xdp", "veth_xdp_rcv", "veth_poll"], Always, Xdp, Possible, At(Ingress)),
        // The cgroup's egress program is the last that can drop a packet there.
        row(Absent, &["ip_finish_output", "ip6_finish_output"], Always, Cgroup, Possible, At(Output)),
        // A netkit device (from Linux 6.7) runs its programs here, between its two ends, when the packet is already the receiving end's.
        row(Any, &["netkit_xmit"], Always, Tc, Possible, At(Ingress)),
        row(Is("OVS_DROP_LAST_ACTION"), &[], Always, Ovs, Likely, UNKNOWN),
        row(Is("OVS_DROP_EXPLICIT"), &[], Always, Ovs, Likely, UNKNOWN),
        // Open vSwitch's other reasons are errors and limits.
        row(BeginsWith("OVS_DROP"), &[], Always, Ovs, Irrelevant, UNKNOWN),
        // Each answered ping ends so; Linux 6.1 frees it in the caller.
        row(Any, &["ping_rcv"], Always, Mechanism::Unknown, Noise, UNKNOWN),
        row(Is("NO_SOCKET"), &["icmp_rcv", "icmpv6_rcv"], Always, Mechanism::Unknown, Noise, UNKNOWN),
        noise("NOT_DROPPED_YET"),
        noise("CONSUMED"),
        noise("QUEUE_PURGE"),
        noise("TCP_OLD_DATA"),
        noise("TCP_OLD_ACK"),
        noise("TCP_OFOMERGE"),
        noise("TCP_OVERWINDOW"),
        noise("TCP_ACK_UNSENT_DATA"),
        noise("TCP_OFO_DROP"),
        noise("TCP_OFO_QUEUE_PRUNE"),
        noise("PACKET_SOCK_ERROR"),
        noise("DUP_FRAG"),
        // Drops without a reason that are worth a record with `--all-drops`.
        row(
            Unspecific,
            &["ip_error", "ip6_pkt_drop", "dst_discard_out", "ip_forward"],
            Always,
            Mechanism::Unknown,
            Irrelevant,
            UNKNOWN,
        ),
    ]
};

/// Drops that no row of [`TABLE`] is about.
const OTHER: DropClass =
    row(Reasons::Any, &[], Condition::Always, Mechanism::Unknown, PolicyRelevance::Irrelevant, HookSource::Unknown);

const fn row(
    reasons: Reasons,
    call_sites: &'static [&'static str],
    condition: Condition,
    mechanism: Mechanism,
    relevance: PolicyRelevance,
    hook: HookSource,
) -> DropClass {
    DropClass { reasons, call_sites, condition, mechanism, relevance, hook }
}

/// A reason that healthy traffic causes all the time.
const fn noise(reason: &'static str) -> DropClass {
    row(Reasons::Is(reason), &[], Condition::Always, Mechanism::Unknown, PolicyRelevance::Noise, HookSource::Unknown)
}

/// Returns true if a drop's reason is unspecific, so that the call site has to decide.
pub fn is_unspecific(reason: Option<&str>) -> bool {
    reason.is_none_or(|reason| reason == "NOT_SPECIFIED")
}

/// Returns the row of a drop.
pub fn classify(observed: &Observed<'_>) -> &'static DropClass {
    TABLE.iter().find(|class| class.fits(observed)).unwrap_or(&OTHER)
}

/// Returns the relevance of a reason wherever it occurs; `None` if the table does not name the reason alone.
pub fn relevance_of_reason(reason: &str) -> Option<PolicyRelevance> {
    let class = TABLE
        .iter()
        .find(|class| class.call_sites.is_empty() && matches!(class.reasons, Reasons::Is(name) if name == reason))?;
    Some(class.relevance)
}

/// Returns the functions whose unspecific drops are of interest. `reasons_known`: this kernel gives netfilter's drops a reason.
pub fn call_sites(reasons_known: bool, all_drops: bool) -> Vec<&'static str> {
    let is_of_interest = |class: &&DropClass| match class.reasons {
        Reasons::Any => !matches!(class.relevance, PolicyRelevance::Irrelevant | PolicyRelevance::Noise),
        Reasons::Absent => !reasons_known,
        Reasons::Unspecific => all_drops,
        Reasons::Is(_) | Reasons::BeginsWith(_) => false,
    };
    let mut names: Vec<&str> =
        TABLE.iter().filter(is_of_interest).flat_map(|class| class.call_sites).copied().collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl DropClass {
    fn fits(&self, observed: &Observed<'_>) -> bool {
        let reason = match self.reasons {
            Reasons::Any => true,
            Reasons::Is(name) => observed.reason == Some(name),
            Reasons::BeginsWith(prefix) => observed.reason.is_some_and(|reason| reason.starts_with(prefix)),
            Reasons::Absent => observed.reason.is_none(),
            Reasons::Unspecific => is_unspecific(observed.reason),
        };
        let condition = match self.condition {
            Condition::Always => true,
            Condition::KernelThread => observed.kernel_thread,
            Condition::NftHasLocation => observed.nft_has_location,
        };
        let here = || observed.call_site.is_some_and(|call_site| self.call_sites.contains(&call_site));
        reason && condition && (self.call_sites.is_empty() || here())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(reason: &str, call_site: &str) -> (Mechanism, PolicyRelevance) {
        let known = |text| Some(text).filter(|text: &&str| !text.is_empty());
        let class = classify(&Observed {
            reason: known(reason),
            call_site: known(call_site),
            kernel_thread: false,
            nft_has_location: true,
        });
        (class.mechanism, class.relevance)
    }

    #[test]
    fn reasons_and_call_sites() {
        use PolicyRelevance::{EnforcerDown, Irrelevant, Likely, Noise, Possible};
        assert_eq!(class("NETFILTER_DROP", "nft_do_chain"), (Mechanism::Nftables, Likely));
        assert_eq!(class("NETFILTER_DROP", "nf_hook_slow"), (Mechanism::IptablesLegacy, Likely));
        assert_eq!(class("NETFILTER_DROP", "some_module"), (Mechanism::Netfilter, Likely));
        assert_eq!(class("", "nf_hook_slow"), (Mechanism::IptablesLegacy, Likely));
        assert_eq!(class("NOT_SPECIFIED", "nfqnl_reinject"), (Mechanism::Nfqueue, Likely));
        assert_eq!(class("NOT_SPECIFIED", "nf_queue"), (Mechanism::Nfqueue, EnforcerDown));
        assert_eq!(class("TC_INGRESS", "__netif_receive_skb_core"), (Mechanism::Tc, Possible));
        assert_eq!(class("NOT_SPECIFIED", "netkit_xmit"), (Mechanism::Tc, Possible));
        assert_eq!(class("OVS_DROP_LAST_ACTION", "do_execute_actions"), (Mechanism::Ovs, Likely));
        assert_eq!(class("OVS_DROP_METER", "do_execute_actions"), (Mechanism::Ovs, Irrelevant));
        assert_eq!(class("NO_SOCKET", "tcp_v4_rcv"), (Mechanism::Unknown, Irrelevant));
        assert_eq!(class("NO_SOCKET", "icmp_rcv"), (Mechanism::Unknown, Noise));
        assert_eq!(class("", "ip_finish_output"), (Mechanism::Cgroup, Possible));
        assert_eq!(class("NOT_SPECIFIED", "ip_finish_output"), (Mechanism::Unknown, Irrelevant));
    }

    #[test]
    fn conditions() {
        let reason = Some("NETFILTER_DROP");
        let before = Observed { reason, call_site: Some("nf_hook_slow"), ..Observed::default() };
        assert_eq!(classify(&before).mechanism, Mechanism::Netfilter, "before 6.7 nftables drops there too");
        let dying = Observed { call_site: Some("nf_reinject"), kernel_thread: true, ..Observed::default() };
        assert_eq!(classify(&dying).relevance, PolicyRelevance::EnforcerDown, "the listener is gone");
    }

    /// A row that an earlier one always hides would never be used.
    #[test]
    fn every_row_can_be_reached() {
        for class in TABLE {
            let reason = match class.reasons {
                Reasons::Is(reason) => Some(reason),
                Reasons::BeginsWith(prefix) => Some(prefix),
                Reasons::Any | Reasons::Unspecific => Some("NOT_SPECIFIED"),
                Reasons::Absent => None,
            };
            let observed = Observed {
                reason,
                call_site: class.call_sites.last().copied(),
                kernel_thread: class.condition == Condition::KernelThread,
                nft_has_location: class.condition == Condition::NftHasLocation,
            };
            assert_eq!(classify(&observed), class);
        }
    }

    #[test]
    fn call_sites_of_old_and_new_kernels() {
        let new = call_sites(true, false);
        assert!(new.contains(&"nf_queue") && new.contains(&"netkit_xmit"));
        assert!(!new.contains(&"nf_hook_slow") && !new.contains(&"ip_error") && !new.contains(&"ping_rcv"));
        let old = call_sites(false, false);
        assert!(new.iter().all(|name| old.contains(name)) && old.contains(&"veth_poll"));
        assert_eq!(call_sites(true, true).len(), new.len() + 4);
    }
}
