//! ipBlock: addresses that policy never sees, that the CNI decides about, or of one family only.

use ipnet::IpNet;

use crate::cluster::index::AddressOwner;
use crate::cluster::manifests::Located;
use crate::model::cluster::{Direction, Object, Peer, Service};
use crate::policy::lint::context::{Context, PolicyContext, list, names};
use crate::policy::lint::{Finding, Severity};

pub fn check(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    for direction in [Direction::Ingress, Direction::Egress] {
        for (path, rule) in at.rules(direction) {
            let peers = rule.peers.as_deref().unwrap_or_default();
            for (i, peer) in peers.iter().enumerate() {
                let Peer::Block { cidr, except } = peer else { continue };
                let path = format!("{path}.{}[{i}].ipBlock", direction.peers_field());
                let service = direction == Direction::Egress && service_address(context, at, &path, cidr, findings);
                if !service {
                    pod_addresses(context, at, &path, cidr, except, findings);
                }
                if direction == Direction::Ingress {
                    translated_source(context, at, &path, cidr, findings);
                }
            }
        }
        family(context, at, direction, findings);
    }
}

/// Blocks that hold a handful of addresses: someone wrote an address.
fn is_address(cidr: &IpNet) -> bool {
    cidr.max_prefix_len() - cidr.prefix_len() <= 3
}

fn service_address(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    path: &str,
    cidr: &IpNet,
    findings: &mut Vec<Finding>,
) -> bool {
    if !is_address(cidr) {
        return false;
    }
    let services = context.index.namespaces().flat_map(|(_, entry)| entry.services());
    // The first address of a service is its cluster IP; the others may be real.
    let hits = services.filter(|service| service.ips.first().is_some_and(|ip| cidr.contains(ip)));
    let Some(service) = hits.min_by_key(|service| (&service.namespace, &service.name)) else { return false };
    let service: &Service = service;
    let backends: Vec<_> = context.index.service_backends(&service.namespace, &service.name).collect();
    if (&*service.namespace, &*service.name) == ("default", "kubernetes") {
        let shown: Vec<String> =
            backends.iter().filter_map(|b| Some(format!("{} port {}", b.ip?, b.target_port))).collect();
        let message =
            format!("{cidr} is the API server's service address: policy sees its endpoints, after the translation");
        let which =
            if shown.is_empty() { "`kubectl get endpointslices -n default`".to_owned() } else { list(&shown, 4) };
        findings.push(at.finding(
            "apiserver",
            &format!("{path}.cidr"),
            message,
            format!("write the endpoints' addresses: {which}"),
        ));
        return true;
    }
    let message = format!(
        "{cidr} is the cluster IP of service {}/{}: policy sees the pod behind it, so this matches nothing",
        service.namespace, service.name
    );
    let fix = match &service.selector {
        Some(selector) => {
            let labels: Vec<String> =
                selector.iter().map(|(k, v)| format!("{k}: {}", crate::cluster::yaml::scalar_text(v))).collect();
            format!(
                "select its pods, with their target port:\n- namespaceSelector:\n    matchLabels: {{kubernetes.io/metadata.name: {}}}\n  \
                 podSelector:\n    matchLabels: {{{}}}",
                service.namespace,
                labels.join(", ")
            )
        }
        None => "write the addresses of its endpoints".to_owned(),
    };
    findings.push(at.finding("clusterip-ipblock", &format!("{path}.cidr"), message, fix));
    true
}

fn pod_addresses(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    path: &str,
    cidr: &IpNet,
    except: &[IpNet],
    findings: &mut Vec<Finding>,
) {
    let mut networks = context.index.nodes().flat_map(|node| node.pod_cidrs.iter());
    let pod = match context.index.owner_of(cidr.addr()) {
        AddressOwner::Pod(view) if is_address(cidr) => Some(view),
        _ => None,
    };
    let inside = pod.is_some() || networks.any(|network| network.contains(cidr));
    let mut networks = context.index.nodes().flat_map(|node| node.pod_cidrs.iter());
    let around = |network: &IpNet| cidr.contains(network) && !except.iter().any(|hole| hole.contains(network));
    // A default route is everybody; a block that happens to hold the pod network may well mean the company's.
    let holds = cidr.prefix_len() > 0 && networks.any(around);
    if !inside && !holds {
        return;
    }
    let what = match pod {
        Some(view) => format!("{cidr} is the address that {} has now", names(&[view])),
        None if inside => format!("{cidr} lies in the pod network"),
        None => format!("{cidr} holds the pod network"),
    };
    let message = format!(
        "{what}: whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses"
    );
    let fix = "for pods use namespaceSelector and podSelector; keep ipBlock for what is outside".to_owned();
    let mut finding = at.finding("pod-cidr-ipblock", &format!("{path}.cidr"), message, fix);
    if !inside {
        finding.severity = Severity::Info;
    }
    findings.push(finding);
}

/// Everywhere in one family, nowhere in the other, on a cluster that has both.
fn family(context: &Context<'_>, at: &PolicyContext<'_>, direction: Direction, findings: &mut Vec<Finding>) {
    if !context.dual_stack {
        return;
    }
    let mut default_routes = Vec::new();
    for (path, rule) in at.rules(direction) {
        for (i, peer) in rule.peers.iter().flatten().enumerate() {
            if let Peer::Block { cidr, .. } = peer
                && cidr.prefix_len() == 0
            {
                default_routes.push((format!("{path}.{}[{i}].ipBlock.cidr", direction.peers_field()), *cidr));
            }
        }
    }
    let Some((path, cidr)) = default_routes.first() else { return };
    if default_routes.iter().any(|(_, other)| other.addr().is_ipv4() != cidr.addr().is_ipv4()) {
        return;
    }
    let (this, other, missing) =
        if cidr.addr().is_ipv4() { ("IPv4", "IPv6", "::/0") } else { ("IPv6", "IPv4", "0.0.0.0/0") };
    let message =
        format!("{cidr} is {this} only, and pods here have {other} addresses too: over {other} nothing is allowed");
    let fix = format!("add an item `- ipBlock: {{cidr: \"{missing}\"}}`, with its own except list");
    findings.push(at.finding("family", path, message, fix));
}

/// Clients by their address, behind a service that hides it.
fn translated_source(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    path: &str,
    cidr: &IpNet,
    findings: &mut Vec<Finding>,
) {
    let node = context.index.nodes().any(|node| node.ips.iter().any(|ip| cidr.contains(ip)));
    if cidr.prefix_len() == 0 || node || context.index.in_pod_network(cidr.addr()) {
        return;
    }
    let subjects = context.subjects(at.policy);
    let hides = |located: &&Located| match &located.object {
        Object::Service(service) if service.namespace == at.policy.namespace && !located.source_kept => {
            let external = service.ports.iter().any(|port| port.node_port.is_some());
            let selector = service.selector.as_ref();
            external
                && subjects
                    .iter()
                    .any(|view| selector.is_some_and(|s| s.iter().all(|(k, v)| view.pod.labels.get(k) == Some(v))))
        }
        _ => false,
    };
    let Some(located) = context.loaded.objects.iter().find(hides) else { return };
    let Object::Service(service) = &located.object else { return };
    let message = format!(
        "clients from {cidr} that come through service {}/{} arrive with a node's address: externalTrafficPolicy is not Local",
        service.namespace, service.name
    );
    let fix = format!("set `externalTrafficPolicy: Local` on the service ({})", located.place);
    findings.push(at.finding("snat-source", &format!("{path}.cidr"), message, fix));
}
