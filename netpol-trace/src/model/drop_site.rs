//! Where in the kernel a packet was dropped, and what the kernel shows of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::packet::{Headers, RST, TCP};
use super::{Family, Str};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Ingress,
    Egress,
    Bridge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    Nftables,
    IptablesLegacy,
    Nfqueue,
    Tc,
    Xdp,
    Cgroup,
    Ovs,
    Netfilter,
    Unknown,
}

/// What the kernel said of the drop besides the packet.
#[derive(Debug, Clone, PartialEq)]
pub struct DropFacts {
    pub reason: Option<Str>,
    pub location: Option<Str>,
    pub site: DropSite,
    pub device: Option<Str>,
    pub netns: Option<u32>,
    /// An ICMP error or a reset about the packet was sent right before it was freed.
    pub rejected: bool,
    pub answers: RejectVisibility,
}

/// Which answers of REJECT are seen on this kernel, each of them: a packet without one was not rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RejectVisibility {
    pub icmp: bool,
    pub icmp6: bool,
    /// TCP resets, of both families.
    pub reset: bool,
}

impl RejectVisibility {
    /// Whether REJECT would have answered such a packet, and the answer been seen.
    pub fn all_to(self, family: Family, headers: &Headers) -> bool {
        let error = match family {
            Family::Ipv4 => self.icmp,
            Family::Ipv6 => self.icmp6,
        };
        // It sends no reset for a reset, and nothing for a fragment.
        let is_reset = headers.tcp_flags.is_none_or(|flags| flags & RST != 0);
        error && !headers.fragment && (headers.protocol != TCP || self.reset && !is_reset)
    }
}

/// What reason and location mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropSite {
    pub mechanism: Mechanism,
    pub relevance: PolicyRelevance,
    pub hook: Option<Hook>,
}

/// Whether a policy may be behind a drop at such a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyRelevance {
    Likely,
    /// A program that anybody may have attached: tc, XDP, cgroup.
    Possible,
    /// The enforcer's queue has no listener.
    EnforcerDown,
    Irrelevant,
    /// What healthy traffic does.
    Noise,
}
