//! Peer lists: what a `from` or `to` lets in beyond what was meant.

use crate::model::Str;
use crate::model::cluster::{Direction, Operator, Peer, Policy, Selector};
use crate::policy::lint::context::{Context, NAME_LABEL, PolicyContext, list, names, namespace_matches, peer_yaml};
use crate::policy::lint::{Finding, Severity};

pub fn check(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    for direction in [Direction::Ingress, Direction::Egress] {
        for (path, rule) in at.rules(direction) {
            let path = format!("{path}.{}", direction.peers_field());
            let peers = rule.peers.as_deref().unwrap_or_default();
            if peers.is_empty() {
                empty_peers(at, direction, &path, rule.peers.is_some(), findings);
            }
            and_or(context, at, direction, &path, peers, findings);
            for (i, peer) in peers.iter().enumerate() {
                wide_namespace(context, at, direction, &format!("{path}[{i}]"), peer, findings);
            }
        }
    }
}

fn empty_peers(at: &PolicyContext<'_>, direction: Direction, path: &str, list: bool, findings: &mut Vec<Finding>) {
    let field = direction.peers_field();
    // An absent field is how "everybody" is written; a field with nothing in it is how a template fails.
    if !at.located.has(path) {
        return;
    }
    let written = if list { format!("`{field}: []`") } else { format!("`{field}:` with nothing in it") };
    let who = if direction == Direction::Ingress { "lets everybody in" } else { "lets these pods connect everywhere" };
    let message = format!("{written} is no restriction: the rule {who}");
    let fix = format!(
        "if nobody is meant, remove the whole rule; if everybody is meant, leave `{field}` out so that it shows"
    );
    findings.push(at.finding("empty-peers", path, message, fix));
}

/// A namespaceSelector item beside a podSelector item.
fn and_or(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    direction: Direction,
    path: &str,
    peers: &[Peer],
    findings: &mut Vec<Finding>,
) {
    let namespace_items = peers.iter().enumerate().filter_map(|(i, peer)| match peer {
        Peer::Pods { namespaces: Some(selector), pods: None } => Some((i, selector)),
        _ => None,
    });
    for (i, namespaces) in namespace_items {
        let mut pod_items = peers.iter().enumerate().filter_map(|(j, peer)| match peer {
            Peer::Pods { namespaces: None, pods: Some(selector) } if !selector.is_everything() => Some((j, selector)),
            _ => None,
        });
        // The items of one mistake stand side by side.
        let Some((j, pods)) = pod_items.find(|(j, _)| j.abs_diff(i) == 1) else { continue };
        if let Some((severity, opened)) = suspicious(context, at.policy, namespaces, pods, peers.len()) {
            let verb = if direction == Direction::Ingress { "lets in" } else { "opens the way to" };
            let message = format!(
                "{verb} EVERY pod of {}, not only {pods}: items {} and {} of the list are alternatives{opened}",
                namespaces_text(namespaces),
                i.min(j),
                i.max(j)
            );
            let fix = format!(
                "to mean both together, write one item (one dash):\n{}\nif either is meant, write two rules, so that it shows",
                peer_yaml(Some(namespaces), Some(pods), 0)
            );
            let mut finding = at.finding("and-or", path, message, fix);
            finding.severity = severity;
            findings.push(finding);
            return;
        }
    }
}

fn namespaces_text(selector: &Selector) -> String {
    if selector.is_everything() { "every namespace".to_owned() } else { format!("namespaces with {selector}") }
}

/// Whether the OR looks like an AND that went wrong, and whom it lets in.
fn suspicious(
    context: &Context<'_>,
    policy: &Policy,
    namespaces: &Selector,
    pods: &Selector,
    items: usize,
) -> Option<(Severity, String)> {
    let own = context.namespace(&policy.namespace);
    let own_matches = match own {
        Some(entry) => namespace_matches(namespaces, &policy.namespace, entry),
        None => None,
    };
    let matching = context.matching_namespaces(namespaces);
    let inside = matching.iter().flat_map(|(name, _)| context.pods(name));
    let (meant, extra): (Vec<_>, Vec<_>) = inside.partition(|view| pods.matches(&view.pod.labels));
    let opened = if extra.is_empty() { String::new() } else { format!(" (now also {})", names(&extra)) };
    if namespaces.is_everything() || own_matches == Some(true) {
        // The podSelector item can't add anything: its pods are in a namespace that is open already.
        return Some((Severity::Warning, opened));
    }
    let own_has = context.pods(&policy.namespace).iter().any(|view| pods.matches(&view.pod.labels));
    if !matching.is_empty() && own_matches == Some(false) {
        return match (meant.is_empty(), own_has) {
            // The label is worn there and not here: it was meant for there.
            (false, false) if context.has_workloads(&policy.namespace) => Some((Severity::Warning, opened)),
            (false, _) => Some((Severity::Info, opened)),
            // Two sources, each with its own selector.
            (true, _) => None,
        };
    }
    if own_has || (own_matches == Some(false) && names_a_namespace(namespaces)) {
        return None;
    }
    // Labels of the namespaces aren't known. A namespace by its name beside pods of one's own is usual; a label such as
    // env=qa most often covers one's own namespace.
    let severity = if items == 2 && !names_a_namespace(namespaces) { Severity::Warning } else { Severity::Info };
    Some((severity, opened))
}

/// `kubernetes.io/metadata.name=x`, `name=x`: a namespace meant as such.
fn names_a_namespace(selector: &Selector) -> bool {
    let by_name =
        |key: &str| key == NAME_LABEL || key == "name" || key.ends_with("/name") || key.ends_with("namespace");
    selector.requirements.iter().any(|r| by_name(&r.key))
}

/// `namespaceSelector: {}` together with a podSelector, for ingress.
fn wide_namespace(
    context: &Context<'_>,
    at: &PolicyContext<'_>,
    direction: Direction,
    path: &str,
    peer: &Peer,
    findings: &mut Vec<Finding>,
) {
    let Peer::Pods { namespaces: Some(namespaces), pods: Some(pods) } = peer else { return };
    // Egress to a label in any namespace is how DNS is often allowed; a server decides who comes in.
    if !namespaces.is_everything() || pods.is_everything() || direction == Direction::Egress {
        return;
    }
    let matching = context.peers(at.policy, peer).map(|peers| peers.pods).unwrap_or_default();
    let mut found: Vec<Str> = matching.iter().map(|view| view.pod.namespace.clone()).collect();
    found.sort();
    found.dedup();
    let others: Vec<&str> = found.iter().filter(|name| **name != at.policy.namespace).map(|name| &**name).collect();
    let now = match others.as_slice() {
        [] => String::new(),
        others => format!("; now also {} of {}", pods, list(others, 3)),
    };
    let message = format!(
        "a pod with {pods} gets in from EVERY namespace: whoever may create a pod anywhere can wear that label{now}"
    );
    let only_own = Selector {
        requirements: [crate::model::cluster::Requirement {
            key: NAME_LABEL.into(),
            operator: Operator::In([at.policy.namespace.clone()].into()),
        }]
        .into(),
    };
    let fix = format!(
        "name the namespaces that are meant, for example only this one:\n{}",
        peer_yaml(Some(&only_own), Some(pods), 0)
    );
    findings.push(at.finding("wide-namespace", path, message, fix));
}
