//! Joins what the kernel said with what the policies say: why the packet died, and on whose side. Pure.

use crate::cluster::Index;
use crate::inventory::owner::Owner;
use crate::inventory::ruleset::{Backend, Ends};
use crate::inventory::{Blame, Inventory};
use crate::model::packet::Headers;
use crate::model::{
    Action, Answers, Candidate, Cause, Direction, EndpointKind, Family, Hook, Mechanism, Site, VerdictResult,
};
use crate::pipeline::enrich::{Flow, Named, OwnedBy};

/// What the join needs to know besides the flow and the verdict.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    pub site: Site,
    pub headers: &'a Headers,
    /// Conntrack was told to leave the packet alone.
    pub untracked: bool,
    /// Conntrack is at work in the packet's network namespace.
    pub netns_tracks: bool,
    /// This node's name.
    pub node: Option<&'a str>,
    /// One end is a pod, the other the node it runs on, whose traffic NetworkPolicy always allows.
    pub own_node: bool,
    /// The service that was asked for has a ready endpoint somewhere.
    pub service_has_endpoints: bool,
    /// What can drop in the network namespace of the drop; `None` when that is not the agent's own, or not known now.
    pub inventory: Option<&'a Inventory>,
    pub family: Family,
    /// The packet's device.
    pub device: Option<&'a str>,
    /// See [`crate::model::Facts`].
    pub rejected: bool,
    pub answers: Answers,
}

/// What the inventory adds to the kernel's word for the place: which engine it was, where that leaves it open.
pub fn firm_up(site: Site, family: Family, inventory: Option<&Inventory>) -> Site {
    let Some(inventory) = inventory.filter(|inventory| inventory.ruleset.complete) else { return site };
    let ends = |backend, hook| inventory.ruleset.at(backend, hook, family).ends(|_| false);
    let can_drop = |backend| {
        let ends: Ends = ends(backend, site.hook);
        ends.drop || ends.reject
    };
    let mechanism = match site.mechanism {
        Mechanism::Netfilter | Mechanism::IptablesLegacy => {
            match (can_drop(Backend::Nft), can_drop(Backend::Legacy), site.mechanism) {
                (_, true, Mechanism::IptablesLegacy) | (false, true, _) => Mechanism::IptablesLegacy,
                (true, false, Mechanism::Netfilter) => Mechanism::Nftables,
                // Another user of the hooks: ebtables, a BPF netfilter link, the kernel itself.
                _ => Mechanism::Netfilter,
            }
        }
        known => known,
    };
    // Before routing, a device's ingress hook and PREROUTING look alike; often only one of them has rules.
    let hook = site.hook.or_else(|| {
        let backends = [Backend::Nft, Backend::Legacy];
        let has = |hook| backends.iter().any(|backend| ends(*backend, Some(hook)).any());
        match (mechanism, has(Hook::Ingress), has(Hook::Prerouting)) {
            (Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Nfqueue, true, false) => Some(Hook::Ingress),
            (Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Nfqueue, false, true) => {
                Some(Hook::Prerouting)
            }
            _ => None,
        }
    });
    Site { mechanism, hook, ..site }
}

/// Whether `flow` is between a pod and the node it runs on.
pub fn own_node(flow: &Flow<'_>) -> bool {
    let pair = |pod: &Named<'_>, node: &Named<'_>| match (pod.pod(), &node.owner) {
        (Some(pod), OwnedBy::Node(node)) => !pod.pod.host_network && pod.pod.node.as_deref() == Some(&**node),
        _ => false,
    };
    pair(&flow.source, &flow.destination) || pair(&flow.destination, &flow.source)
}

/// Whether a ready endpoint stands behind the service that `flow` asked for.
pub fn service_has_endpoints(flow: &Flow<'_>, index: &Index) -> bool {
    let Some(service) = &flow.destination.service else { return false };
    let Some(namespace) = index.namespace(&service.namespace) else { return false };
    let mut slices = namespace.slices().filter(|slice| slice.service.as_deref() == Some(&*service.name));
    slices.any(|slice| slice.endpoints.iter().any(|endpoint| endpoint.ready))
}

/// What was done with the packet. A rule that rejects frees it just as one that drops does: it is known by the answer that
/// was or was not sent, where the kernel shows that, else only when every rule that can have done it does the same.
pub fn action(cause: Cause, about: &Circumstances<'_>) -> Action {
    match about.site.mechanism {
        Mechanism::Tc | Mechanism::Xdp | Mechanism::Cgroup => return Action::Drop,
        // The queue's listener can only drop. A packet that it accepts and that a later legacy rule ends is freed there too.
        Mechanism::Nfqueue if about.inventory.is_none() && !about.rejected => return Action::Drop,
        // What a flow rejects goes to the switch's daemon, which answers: only what it drops is freed.
        Mechanism::Ovs if about.site.candidate == Candidate::Policy => return Action::Drop,
        Mechanism::Ovs | Mechanism::Unknown => return Action::Unknown,
        Mechanism::Nfqueue | Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Netfilter => {}
    }
    if about.rejected {
        return Action::Reject;
    }
    // Bridges and devices send their answers past the places that are watched.
    let by_ip = matches!(
        about.site.hook,
        Some(Hook::Prerouting | Hook::Input | Hook::Forward | Hook::Output | Hook::Postrouting)
    );
    if by_ip && about.answers.all_to(about.family, about.headers) {
        return Action::Drop;
    }
    let Some(inventory) = about.inventory.filter(|inventory| inventory.ruleset.complete) else {
        return Action::Unknown;
    };
    let mechanism = match about.site.mechanism {
        Mechanism::Nfqueue => Mechanism::IptablesLegacy,
        other => other,
    };
    let found = inventory.at(mechanism, about.site.hook, about.family);
    let policy_made = found.has_policy();
    let ends = found.ends(|owner| match cause {
        Cause::Policy | Cause::Disagrees if policy_made => owner.is_none_or(|owner| !owner.is_policy()),
        // kube-proxy drops what asks for a service that can't be had; such drops have causes of their own.
        Cause::Policy | Cause::Disagrees => owner == Some(Owner::KubeProxy),
        _ => false,
    });
    match (ends.drop || about.site.mechanism == Mechanism::Nfqueue, ends.reject) {
        (true, false) => Action::Drop,
        (false, true) => Action::Reject,
        _ => Action::Unknown,
    }
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
    // No policy speaks of the loopback network: KUBE-FIREWALL keeps others off it.
    if flow.source.ip.is_loopback() != flow.destination.ip.is_loopback() {
        return Some(Cause::HostFirewall);
    }
    if matches!(flow.destination.owner, OwnedBy::Service) && !flow.dst_nat && behind_dst_nat(about.site) {
        // With endpoints it is a rule of kube-proxy's: source ranges, or a traffic policy without local endpoints.
        let none = if about.service_has_endpoints { Cause::NotPolicy } else { Cause::ServiceWithoutEndpoints };
        return Some(none);
    }
    let no_pod = |kind| matches!(kind, EndpointKind::Node | EndpointKind::External | EndpointKind::Service);
    if no_pod(flow.source.owner.kind()) && no_pod(flow.destination.owner.kind()) {
        return Some(Cause::HostFirewall);
    }
    pod_local(flow, about.site).then_some(Cause::PodLocal)
}

/// Whether a service's address would have been translated by then. tc, XDP and PREROUTING come before.
fn behind_dst_nat(site: Site) -> bool {
    let behind = matches!(site.hook, Some(Hook::Input | Hook::Forward | Hook::Output | Hook::Postrouting));
    behind && site.mechanism != Mechanism::Cgroup
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
        flags & (crate::model::packet::SYN | crate::model::packet::ACK)
            == crate::model::packet::SYN | crate::model::packet::ACK
            || flags & crate::model::packet::RST != 0
    });
    lone || about.netns_tracks
}

/// On the node a pod's packets are forwarded; only inside the pod's own network namespace do they pass its INPUT and OUTPUT.
fn pod_local(flow: &Flow<'_>, site: Site) -> bool {
    // A cgroup's program is attached from outside of the pod, though it runs for the pod's own sockets.
    if site.mechanism == Mechanism::Cgroup {
        return false;
    }
    let (to, from) = if flow.reply { (&flow.source, &flow.destination) } else { (&flow.destination, &flow.source) };
    match site.hook {
        Some(Hook::Input) => to.pod().is_some_and(|p| !p.pod.host_network),
        Some(Hook::Output) => from.pod().is_some_and(|p| !p.pod.host_network),
        _ => false,
    }
}

/// The cause of a drop that a policy may have made, and whether a change of policies is what speaks for it: `policy_changing`
/// says whether one of either end's namespace changed within the grace window.
pub fn with_verdict(
    result: VerdictResult,
    about: &Circumstances<'_>,
    policy_changing: impl FnOnce() -> bool,
) -> (Cause, bool) {
    let site = about.site;
    let certain = site.candidate == Candidate::Policy;
    // A flow of Open vSwitch is the CNI's: no chain of netfilter's, whosever it is, has a part in it.
    let ovs = site.mechanism == Mechanism::Ovs;
    let cni = || about.inventory.zip(about.device).and_then(|(inventory, device)| inventory.cni_on(device)).is_some();
    let blame = match about.inventory {
        Some(inventory) if certain && !ovs => inventory.blame(site.mechanism, site.hook, about.family),
        _ if site.mechanism == Mechanism::Tc && cni() => Blame::Policy,
        _ => Blame::Nobody,
    };
    let cause = match (result, blame) {
        // A rule of somebody else's did it, whatever the policies say.
        (_, Blame::Other) => Cause::HostFirewall,
        // No policy speaks of a pod and its own node: unless an enforcer's chain did it, it was the node's own firewall.
        (VerdictResult::Allowed, Blame::Nobody)
            if about.own_node && certain && site.mechanism != Mechanism::Nfqueue && !ovs =>
        {
            Cause::HostFirewall
        }
        (VerdictResult::Denied, _) => Cause::Policy,
        // A socket's own filter drops like a cgroup's program, and far more often.
        _ if site.mechanism == Mechanism::Cgroup && site.hook == Some(Hook::Input) => Cause::NotPolicy,
        (VerdictResult::Allowed, _) if certain && policy_changing() => return (Cause::Policy, true),
        (VerdictResult::Allowed, _) if certain => Cause::Disagrees,
        (VerdictResult::Allowed, Blame::Policy) => Cause::Disagrees,
        (VerdictResult::Undetermined, Blame::Policy) => Cause::Policy,
        // Anybody may attach a tc, XDP or cgroup program, and the policies say that it was not they.
        (VerdictResult::Allowed | VerdictResult::Undetermined, _) => Cause::Unknown,
    };
    (cause, false)
}

/// The side whose verdict denies; when both do, the source's if it is on this node.
///
/// `denied`: whether egress denies, and whether ingress does.
pub fn direction(flow: &Flow<'_>, denied: [bool; 2], node: Option<&str>) -> Option<Direction> {
    match denied {
        [true, true] => {
            let source_node = flow.source.pod().and_then(|p| p.pod.node.as_deref());
            let elsewhere = matches!((source_node, node), (Some(a), Some(b)) if a != b);
            Some(if elsewhere { Direction::Ingress } else { Direction::Egress })
        }
        [true, false] => Some(Direction::Egress),
        [false, true] => Some(Direction::Ingress),
        [false, false] => None,
    }
}
