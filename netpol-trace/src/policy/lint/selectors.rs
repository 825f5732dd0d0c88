//! Peer selectors that match nothing: labels that a namespace doesn't have, pods that aren't there or can't be selected.

use std::net::IpAddr;

use crate::model::Str;
use crate::model::cluster::{Direction, Operator, Peer, Requirement, Selector};
use crate::policy::lint::context::{Context, NAME_LABEL, PolicyContext, closest, list, names, nearest, peer_yaml};
use crate::policy::lint::{Finding, Severity};

pub fn check(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    for direction in [Direction::Ingress, Direction::Egress] {
        for (path, rule) in at.rules(direction) {
            for (i, peer) in rule.peers.iter().flatten().enumerate() {
                let path = format!("{path}.{}[{i}]", direction.peers_field());
                let Peer::Pods { namespaces, pods } = peer else { continue };
                if let Some(selector) = namespaces
                    && namespace_label(context, at, &path, selector, pods.as_ref(), findings)
                {
                    continue;
                }
                if let Some(selector) = pods
                    && !api_server(context, at, direction, &path, selector, findings)
                {
                    pod_label(context, at, &path, peer, selector, findings);
                }
            }
        }
    }
}

/// ns-label, and no-match of a namespaceSelector; whether there was something to say.
fn namespace_label(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    path: &str,
    selector: &Selector,
    pods: Option<&Selector>,
    findings: &mut Vec<Finding>,
) -> bool {
    if selector.is_everything() || !context.matching_namespaces(selector).is_empty() {
        return false;
    }
    let path = format!("{path}.namespaceSelector");
    for requirement in &selector.requirements {
        let Operator::In(values) = &requirement.operator else { continue };
        let [value] = &**values else { continue };
        // The value is a namespace's name, and that namespace doesn't carry the label.
        let named = context.namespace(value).and_then(|entry| entry.labels());
        if &*requirement.key != NAME_LABEL
            && let Some(labels) = named
            && !requirement.matches(labels)
        {
            let own: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let message = format!("namespace {value} has no label {requirement}; it has {}", list(&own, 4));
            findings.push(at.finding("ns-label", &path, message, name_fix(value, pods)));
            return true;
        }
        if &*requirement.key == "name" {
            let message = format!(
                "{requirement} is a label that Kubernetes doesn't set: it matches only where somebody labelled the namespace so"
            );
            let mut finding = at.finding("ns-label", &path, message, name_fix(value, pods));
            finding.severity = Severity::Info;
            findings.push(finding);
            return true;
        }
        // A typing mistake: nearly a label that a namespace here has.
        let labelled = context.index.namespaces().filter_map(|(name, entry)| Some((name, entry.labels()?)));
        let near = labelled.filter_map(|(name, labels)| Some((closest_typo(requirement, labels)?, name.clone()))).min();
        if let Some(((_, label), name)) = near {
            let message =
                format!("namespaceSelector {selector} matches no namespace here; nearest: {name} has {label}");
            let fix = format!("write {}", label.replacen('=', ": ", 1));
            findings.push(at.finding("no-match", &path, message, fix));
            return true;
        }
    }
    false
}

/// Only what is spelt nearly the same: another value is another namespace, which the input may not have.
fn closest_typo(requirement: &Requirement, labels: &crate::model::cluster::Labels) -> Option<(usize, String)> {
    closest(requirement, labels).filter(|(distance, label)| *distance > 0 && *distance <= 2 && label.len() > 6)
}

fn name_fix(namespace: &Str, pods: Option<&Selector>) -> String {
    let requirement = Requirement { key: NAME_LABEL.into(), operator: Operator::In([namespace.clone()].into()) };
    let selector = Selector { requirements: [requirement].into() };
    format!("select it by the label that every namespace has:\n{}", peer_yaml(Some(&selector), pods, 0))
}

/// no-match and hostnet-peer of a peer's podSelector.
fn pod_label(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    path: &str,
    peer: &Peer,
    selector: &Selector,
    findings: &mut Vec<Finding>,
) {
    if selector.is_everything() {
        return;
    }
    let Some(peers) = context.peers(at.policy, peer) else { return };
    if peers.pods.iter().any(|view| !view.pod.host_network) {
        return;
    }
    let path = format!("{path}.podSelector");
    if !peers.pods.is_empty() {
        let mut ips: Vec<IpAddr> = peers.pods.iter().flat_map(|view| view.pod.ips.iter().copied()).collect();
        if ips.is_empty() {
            ips = context.index.nodes().flat_map(|node| node.ips.iter().copied()).collect();
        }
        ips.sort();
        ips.dedup();
        let shown: Vec<String> = ips.iter().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })).collect();
        let which = if shown.is_empty() { String::new() } else { format!(" ({})", list(&shown, 4)) };
        let message =
            format!("{selector} is {} only: hostNetwork, so its packets carry the node's address", names(&peers.pods));
        let fix = format!("use ipBlock items with the nodes' addresses{which}");
        findings.push(at.finding("hostnet-peer", &path, message, fix));
        return;
    }
    if !peers.known {
        return;
    }
    let all: Vec<_> = peers.namespaces.iter().flat_map(|(name, _)| context.pods(name)).collect();
    let namespaces: Vec<&str> = peers.namespaces.iter().map(|(name, _)| &**name).collect();
    let nearest = nearest(selector, &all).map(|text| format!("; nearest: {text}")).unwrap_or_default();
    let message = format!("podSelector {selector} matches no pod of {}{nearest}", list(&namespaces, 3));
    let own = matches!(peer, Peer::Pods { namespaces: None, .. });
    let mut elsewhere: Vec<&str> = context
        .index
        .namespaces()
        .filter(|(name, _)| own && context.pods(name).iter().any(|view| selector.matches(&view.pod.labels)))
        .map(|(name, _)| &**name)
        .collect();
    elsewhere.sort_unstable();
    let fix = match elsewhere.first() {
        Some(namespace) => {
            let yaml = name_fix(&Str::from(*namespace), Some(selector));
            format!("such pods are in {}: {yaml}", list(&elsewhere, 3))
        }
        None => "correct the label".to_owned(),
    };
    let mut finding = at.finding("no-match", &path, message, fix);
    if context.is_chart() {
        // One chart is rarely all of its namespace: the peer may be another's.
        finding.severity = Severity::Info;
    }
    findings.push(finding);
}

/// The API server by its static pod's labels.
fn api_server(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    direction: Direction,
    path: &str,
    selector: &Selector,
    findings: &mut Vec<Finding>,
) -> bool {
    let names_it = selector.requirements.iter().any(|r| match &r.operator {
        Operator::In(values) => values.iter().any(|value| &**value == "kube-apiserver"),
        _ => false,
    });
    if !names_it || direction != Direction::Egress {
        return false;
    }
    let endpoints: Vec<String> = context
        .index
        .service_backends("default", "kubernetes")
        .filter_map(|backend| Some(format!("{}:{}", backend.ip?, backend.target_port)))
        .collect();
    let which = if endpoints.is_empty() {
        "`kubectl get endpointslices -n default -l kubernetes.io/service-name=kubernetes` lists them".to_owned()
    } else {
        format!("here {}", list(&endpoints, 4))
    };
    let message =
        format!("{selector} doesn't select the API server: it runs on its node's network, or outside of the cluster");
    let fix = format!("use ipBlock items with its endpoints' addresses and port: {which}");
    findings.push(at.finding("apiserver", &format!("{path}.podSelector"), message, fix));
    true
}
