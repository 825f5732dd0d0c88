//! Joins what the kernel said with what the policies say: why the packet died, and on whose side. Pure.

use crate::enrich::{Flow, OwnedBy};
use crate::packet::{Candidate, Headers, Site, headers};
use crate::record::{Cause, Direction, EndpointKind, Hook, Mechanism, Verdict, VerdictResult};

/// What the join needs to know besides the flow and the verdict.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    pub site: Site,
    pub headers: &'a Headers,
    /// Conntrack was told to leave the packet alone.
    pub untracked: bool,
    /// Conntrack is at work in the packet's network namespace.
    pub netns_tracks: bool,
    /// A policy of either end's namespace changed within the grace window.
    pub policy_changing: bool,
    /// This node's name.
    pub node: Option<&'a str>,
}

/// Why a drop, before or without a verdict. `None`: a policy may be behind it, so it needs one.
pub fn without_verdict(flow: &Flow<'_>, about: &Circumstances<'_>) -> Option<Cause> {
    match about.site.candidate {
        Candidate::Outage => return Some(Cause::EnforcerUnavailable),
        Candidate::No | Candidate::Noise => return Some(Cause::NotPolicy),
        Candidate::Policy | Candidate::Maybe => {}
    }
    if conntrack_invalid(flow, about) {
        return Some(Cause::ConntrackInvalid);
    }
    if matches!(flow.destination.owner, OwnedBy::Service) && !flow.dst_nat {
        return Some(Cause::ServiceWithoutEndpoints);
    }
    let no_pod = |kind| matches!(kind, EndpointKind::Node | EndpointKind::External | EndpointKind::Service);
    if no_pod(flow.source.owner.kind()) && no_pod(flow.destination.owner.kind()) {
        return Some(Cause::HostFirewall);
    }
    pod_local(flow, about.site.hook).then_some(Cause::PodLocal)
}

/// A packet that passed conntrack and got no connection. Only behind routing is it certain that conntrack came first.
fn conntrack_invalid(flow: &Flow<'_>, about: &Circumstances<'_>) -> bool {
    let behind_conntrack = matches!(about.site.hook, Some(Hook::Forward | Hook::Input | Hook::Postrouting));
    let netfilter = matches!(
        about.site.mechanism,
        Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Netfilter | Mechanism::Nfqueue
    );
    if flow.tracked || about.untracked || about.headers.fragment || !behind_conntrack || !netfilter {
        return false;
    }
    // A SYN-ACK or RST never opens a connection, so alone it is the rest of one.
    let lone = about.headers.tcp_flags.is_some_and(|flags| {
        flags & (headers::SYN | headers::ACK) == headers::SYN | headers::ACK || flags & headers::RST != 0
    });
    lone || about.netns_tracks
}

/// On the node a pod's packets are forwarded; only inside the pod's own network namespace do they pass its INPUT and OUTPUT.
fn pod_local(flow: &Flow<'_>, hook: Option<Hook>) -> bool {
    let (to, from) = if flow.reply { (&flow.source, &flow.destination) } else { (&flow.destination, &flow.source) };
    match hook {
        Some(Hook::Input) => to.pod().is_some_and(|p| !p.pod.host_network),
        Some(Hook::Output) => from.pod().is_some_and(|p| !p.pod.host_network),
        _ => false,
    }
}

/// The cause of a drop that a policy may have made. May change the verdict's basis.
pub fn with_verdict(verdict: &mut Verdict, about: &Circumstances<'_>) -> Cause {
    let certain = about.site.candidate == Candidate::Policy;
    match verdict.result {
        VerdictResult::Denied => Cause::Policy,
        VerdictResult::Allowed if about.policy_changing && certain => {
            verdict.basis = "policy_changing".into();
            Cause::Policy
        }
        VerdictResult::Allowed if certain => Cause::Disagrees,
        // Anybody may attach a tc, XDP or cgroup program, and the policies say that it was not they.
        VerdictResult::Allowed | VerdictResult::Undetermined => Cause::Unknown,
    }
}

/// The side whose verdict denies; when both do, the source's if it is on this node.
pub fn direction(flow: &Flow<'_>, verdict: &Verdict, node: Option<&str>) -> Option<Direction> {
    let denied = |side: &crate::record::Side| side.result == VerdictResult::Denied;
    match (denied(&verdict.egress), denied(&verdict.ingress)) {
        (true, true) => {
            let source_node = flow.source.pod().and_then(|p| p.pod.node.clone());
            let elsewhere = matches!((source_node, node), (Some(a), Some(b)) if *a != *b);
            Some(if elsewhere { Direction::Ingress } else { Direction::Egress })
        }
        (true, false) => Some(Direction::Egress),
        (false, true) => Some(Direction::Ingress),
        (false, false) => None,
    }
}

impl Cause {
    /// Written without `--all-drops`.
    pub fn is_default(self) -> bool {
        matches!(
            self,
            Cause::Policy
                | Cause::Disagrees
                | Cause::EnforcerUnavailable
                | Cause::ServiceWithoutEndpoints
                | Cause::Unknown
        )
    }
}
