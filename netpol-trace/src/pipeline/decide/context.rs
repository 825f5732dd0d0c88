//! What a decision depends on: the drop site as refined by the inventory, the headers, the node.

use crate::cluster::Index;
use crate::inventory::Inventory;
use crate::inventory::ruleset::{RuleEngine, Terminals};
use crate::model::packet::{Headers, Packet};
use crate::model::{DropFacts, DropSite, Family, Hook, Mechanism, RejectVisibility};
use crate::pipeline::enrich::{Flow, FlowEndpoint, Identity};

/// Everything that a decision depends on besides the flow and the verdict.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) struct DropContext<'a> {
    pub site: DropSite,
    pub headers: &'a Headers,
    /// A rule exempted the packet from conntrack.
    pub untracked: bool,
    /// Conntrack is active in the packet's network namespace.
    pub conntrack_active: bool,
    /// This node's name.
    pub node: Option<&'a str>,
    /// One endpoint is a pod, the other is its node. NetworkPolicy always allows that traffic.
    pub own_node: bool,
    /// The service that the client addressed has a ready endpoint.
    pub service_has_endpoints: bool,
    /// The inventory of the drop's network namespace; `None` where that is not the agent's own or the inventory is outdated.
    pub inventory: Option<&'a Inventory>,
    pub family: Family,
    /// The packet's device.
    pub device: Option<&'a str>,
    /// See [`crate::model::DropFacts`].
    pub rejected: bool,
    pub visible_rejects: RejectVisibility,
}

/// What the agent knows of its node at the time of a drop.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) struct NodeContext<'a> {
    pub name: Option<&'a str>,
    pub inventory: Option<&'a Inventory>,
    pub conntrack_active: bool,
}

impl<'a> DropContext<'a> {
    pub fn new(
        flow: &Flow<'_>,
        packet: &'a Packet,
        facts: &'a DropFacts,
        node: NodeContext<'a>,
        index: &Index,
    ) -> DropContext<'a> {
        DropContext {
            site: refine(facts.site, packet.family(), node.inventory),
            headers: &packet.headers,
            untracked: packet.untracked,
            conntrack_active: node.conntrack_active,
            node: node.name,
            own_node: own_node(flow),
            service_has_endpoints: service_has_endpoints(flow, index),
            inventory: node.inventory,
            family: packet.family(),
            device: facts.device.as_deref(),
            rejected: facts.rejected,
            visible_rejects: facts.visible_rejects,
        }
    }
}

/// Refines mechanism and hook by the inventory, where the kernel leaves them open.
fn refine(site: DropSite, family: Family, inventory: Option<&Inventory>) -> DropSite {
    let Some(inventory) = inventory.filter(|inventory| inventory.ruleset.complete) else { return site };
    let terminals = |backend, hook| inventory.ruleset.at(backend, hook, family).terminals(|_| false);
    let can_drop = |backend| {
        let terminals: Terminals = terminals(backend, site.hook);
        terminals.drop || terminals.reject
    };
    let mechanism = match site.mechanism {
        Mechanism::Netfilter | Mechanism::IptablesLegacy => {
            match (can_drop(RuleEngine::Nft), can_drop(RuleEngine::Legacy), site.mechanism) {
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
        let backends = [RuleEngine::Nft, RuleEngine::Legacy];
        let has = |hook| backends.iter().any(|backend| terminals(*backend, Some(hook)).any());
        match (mechanism, has(Hook::Ingress), has(Hook::Prerouting)) {
            (Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Nfqueue, true, false) => Some(Hook::Ingress),
            (Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Nfqueue, false, true) => {
                Some(Hook::Prerouting)
            }
            _ => None,
        }
    });
    DropSite { mechanism, hook, ..site }
}

/// Returns true if `flow` is between a pod and the node that it runs on.
fn own_node(flow: &Flow<'_>) -> bool {
    let pair = |pod: &FlowEndpoint<'_>, node: &FlowEndpoint<'_>| match (pod.pod(), &node.identity) {
        (Some(pod), Identity::Node(node)) => !pod.pod.host_network && pod.pod.node.as_deref() == Some(&**node),
        _ => false,
    };
    pair(&flow.source, &flow.destination) || pair(&flow.destination, &flow.source)
}

/// Returns true if the service that the client addressed has a ready endpoint.
fn service_has_endpoints(flow: &Flow<'_>, index: &Index) -> bool {
    let Some(service) = &flow.destination.service else { return false };
    let Some(namespace) = index.namespace(&service.namespace) else { return false };
    let mut slices = namespace.slices().filter(|slice| slice.service.as_deref() == Some(&*service.name));
    slices.any(|slice| slice.endpoints.iter().any(|endpoint| endpoint.ready))
}
