//! Joins the kernel's evidence with the verdict: why the packet was dropped, and on whose side. Pure.

use super::context::DropContext;
use crate::inventory::RuleOwnership;
use crate::model::{Cause, Direction, DropSite, EndpointKind, Hook, Mechanism, PolicyRelevance, VerdictResult};
use crate::pipeline::enrich::{Flow, Identity};

/// Decides the cause without a verdict. Returns `None` where a policy may have made the drop, so that a verdict is needed.
pub(super) fn without_verdict(flow: &Flow<'_>, context: &DropContext<'_>) -> Option<Cause> {
    match context.site.relevance {
        PolicyRelevance::EnforcerDown => return Some(Cause::EnforcerUnavailable),
        PolicyRelevance::Irrelevant | PolicyRelevance::Noise => return Some(Cause::NotPolicy),
        PolicyRelevance::Likely | PolicyRelevance::Possible => {}
    }
    if conntrack_invalid(flow, context) {
        return Some(Cause::ConntrackInvalid);
    }
    // No policy covers the loopback network; KUBE-FIREWALL protects it.
    if flow.source.ip.is_loopback() != flow.destination.ip.is_loopback() {
        return Some(Cause::HostFirewall);
    }
    if matches!(flow.destination.identity, Identity::Service) && !flow.dst_nat && behind_dst_nat(context.site) {
        // With endpoints it is a rule of kube-proxy's: source ranges, or a traffic policy without local endpoints.
        let none = if context.service_has_endpoints { Cause::NotPolicy } else { Cause::ServiceWithoutEndpoints };
        return Some(none);
    }
    let no_pod = |kind| matches!(kind, EndpointKind::Node | EndpointKind::External | EndpointKind::Service);
    if no_pod(flow.source.identity.kind()) && no_pod(flow.destination.identity.kind()) {
        return Some(Cause::HostFirewall);
    }
    pod_local(flow, context.site).then_some(Cause::PodLocal)
}

/// Returns true if a service's address is translated before this drop site. tc, XDP and PREROUTING come before translation.
fn behind_dst_nat(site: DropSite) -> bool {
    let behind = matches!(site.hook, Some(Hook::Input | Hook::Forward | Hook::Output | Hook::Postrouting));
    behind && site.mechanism != Mechanism::Cgroup
}

/// Returns true if the packet passed conntrack without getting a connection. A SYN without one did not pass conntrack: it would have opened one. Only after routing did conntrack certainly see it.
fn conntrack_invalid(flow: &Flow<'_>, context: &DropContext<'_>) -> bool {
    let behind_conntrack = matches!(context.site.hook, Some(Hook::Forward | Hook::Input | Hook::Postrouting));
    let netfilter = matches!(
        context.site.mechanism,
        Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Netfilter | Mechanism::Nfqueue
    );
    if flow.tracked
        || context.untracked
        || context.headers.fragment
        || context.headers.opens()
        || !behind_conntrack
        || !netfilter
    {
        return false;
    }
    context.conntrack_active
}

/// Returns true if the packet was dropped inside a pod's own network namespace: the node forwards a pod's packets, so only there do
/// they pass INPUT and OUTPUT.
fn pod_local(flow: &Flow<'_>, site: DropSite) -> bool {
    // A cgroup program is attached from outside the pod, although it runs for the pod's sockets.
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

/// Decides the cause by the verdict. Returns also whether a recent change of a policy is the reason for cause `policy`.
///
/// `policy_changing` returns true if a policy of either endpoint's namespace changed within the grace period.
pub(super) fn with_verdict(
    result: VerdictResult,
    context: &DropContext<'_>,
    policy_changing: impl FnOnce() -> bool,
) -> (Cause, bool) {
    let site = context.site;
    let certain = site.relevance == PolicyRelevance::Likely;
    // Open vSwitch flows are the CNI's, and no netfilter chain takes part in them.
    let ovs = site.mechanism == Mechanism::Ovs;
    let cni =
        || context.inventory.zip(context.device).and_then(|(inventory, device)| inventory.cni_on(device)).is_some();
    let ownership = match context.inventory {
        Some(inventory) if certain && !ovs => inventory.ownership(site.mechanism, site.hook, context.family),
        _ if site.mechanism == Mechanism::Tc && cni() => RuleOwnership::Enforcer,
        _ => RuleOwnership::Unknown,
    };
    let cause = match (result, ownership) {
        // A rule that belongs to no enforcer made the drop.
        (_, RuleOwnership::Other) => Cause::HostFirewall,
        // Policies do not apply between a pod and its node: without an enforcer's chain it was the node's own firewall.
        (VerdictResult::Allowed, RuleOwnership::Unknown)
            if context.own_node && certain && site.mechanism != Mechanism::Nfqueue && !ovs =>
        {
            Cause::HostFirewall
        }
        (VerdictResult::Denied, _) => Cause::Policy,
        // A socket filter drops at the same site as a cgroup program, and far more often.
        _ if site.mechanism == Mechanism::Cgroup && site.hook == Some(Hook::Input) => Cause::NotPolicy,
        (VerdictResult::Allowed, _) if certain && policy_changing() => return (Cause::Policy, true),
        (VerdictResult::Allowed, _) if certain => Cause::Disagrees,
        (VerdictResult::Allowed, RuleOwnership::Enforcer) => Cause::Disagrees,
        (VerdictResult::Undetermined, RuleOwnership::Enforcer) => Cause::Policy,
        // Anybody may attach a tc, XDP or cgroup program, and the policies do not explain the drop.
        (VerdictResult::Allowed | VerdictResult::Undetermined, _) => Cause::Unknown,
    };
    (cause, false)
}

/// Returns the side whose verdict denies; where both deny, egress if the source is on this node.
///
/// `denied` states for egress and for ingress whether it denies.
pub(super) fn direction(flow: &Flow<'_>, denied: [bool; 2], node: Option<&str>) -> Option<Direction> {
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
