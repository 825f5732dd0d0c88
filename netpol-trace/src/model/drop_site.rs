//! Where in the kernel a packet was dropped, and what the kernel shows of it.

use super::closed_set::closed_set;
use super::packet::{Headers, RST, TCP};
use super::{Family, Str};

closed_set! {
    /// The hook of netfilter or tc at which the packet was dropped.
    pub enum Hook {
        /// Netfilter's PREROUTING: before the route is looked up.
        Prerouting = "prerouting",
        /// Netfilter's INPUT: on the way to a local socket. Also a cgroup program at a receiving socket.
        Input = "input",
        /// Netfilter's FORWARD: on the way through this network namespace.
        Forward = "forward",
        /// Netfilter's OUTPUT: from a local socket. Also a cgroup program at a sending socket.
        Output = "output",
        /// Netfilter's POSTROUTING: after the route is looked up.
        Postrouting = "postrouting",
        /// A device's receiving side: tc ingress, XDP, netfilter's ingress hook.
        Ingress = "ingress",
        /// A device's sending side: tc egress, netfilter's egress hook.
        Egress = "egress",
        /// A hook of a Linux bridge.
        Bridge = "bridge",
    }
}

closed_set! {
    /// What dropped the packet.
    pub enum Mechanism {
        /// A rule of nftables, or of iptables-nft.
        Nftables = "nftables",
        /// A rule of iptables-legacy.
        IptablesLegacy = "iptables-legacy",
        /// A program that gives its verdict over NFQUEUE, or the lack of one.
        Nfqueue = "nfqueue",
        /// An eBPF program or filter of tc, TCX or netkit.
        Tc = "tc",
        /// An XDP program.
        Xdp = "xdp",
        /// A cgroup's eBPF program.
        Cgroup = "cgroup",
        /// A flow of Open vSwitch.
        Ovs = "ovs",
        /// A netfilter hook; whether nftables, iptables-legacy or another user of the hooks is not known.
        Netfilter = "netfilter",
        /// Another part of the kernel.
        Unknown = "unknown",
    }
}

/// What the kernel shows of a drop besides the packet.
#[derive(Debug, Clone, PartialEq)]
pub struct DropFacts {
    pub reason: Option<Str>,
    /// The function that freed the packet.
    pub location: Option<Str>,
    pub site: DropSite,
    pub device: Option<Str>,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    /// The kernel sent an ICMP error or a reset about the packet right before it freed the packet.
    pub rejected: bool,
    pub visible_rejects: RejectVisibility,
}

/// Which answers of REJECT the agent sees on this kernel. Where it sees an answer, a packet without one was not rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RejectVisibility {
    pub icmp: bool,
    pub icmp6: bool,
    /// TCP resets, of both families.
    pub reset: bool,
}

impl RejectVisibility {
    /// Returns true if REJECT would have answered such a packet and the agent would have seen the answer.
    pub fn covers(self, family: Family, headers: &Headers) -> bool {
        let error = match family {
            Family::Ipv4 => self.icmp,
            Family::Ipv6 => self.icmp6,
        };
        // REJECT sends no reset for a reset, and nothing for a fragment.
        let is_reset = headers.tcp_flags.is_none_or(|flags| flags & RST != 0);
        error && !headers.fragment && (headers.protocol != TCP || self.reset && !is_reset)
    }
}

/// What the drop reason and the call site mean; see [`super::drop_taxonomy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropSite {
    pub mechanism: Mechanism,
    pub relevance: PolicyRelevance,
    pub hook: Option<Hook>,
}

/// Whether a policy may be behind a drop at such a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyRelevance {
    /// Policy enforcers drop packets here.
    Likely,
    /// A program that anybody may have attached dropped the packet: tc, XDP, cgroup.
    Possible,
    /// An NFQUEUE has no listener.
    EnforcerDown,
    /// No policy drops packets here.
    Irrelevant,
    /// Healthy traffic causes such drops all the time; they are never recorded.
    Noise,
}

impl PolicyRelevance {
    /// Returns true if the policies have to be evaluated to find the cause.
    pub fn needs_verdict(self) -> bool {
        matches!(self, PolicyRelevance::Likely | PolicyRelevance::Possible)
    }
}
