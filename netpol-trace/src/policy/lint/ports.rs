//! The pods whose ports a rule names, and the ports that they declare.

use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, PortMatch, PortSpec, Protocol};
use crate::policy::lint::context::{LintContext, RuleContext};
use crate::policy::lint::text::list;

/// The subjects of an ingress rule, the peers of an egress rule. Empty when the input does not show all of them.
pub fn destinations<'c>(context: &'c LintContext<'_>, at: &RuleContext<'_>) -> Vec<PodView<'c>> {
    if at.direction == Direction::Ingress {
        return context.subjects(at.policy.policy);
    }
    let mut pods = Vec::new();
    for (_, peer) in at.peers() {
        match context.peers(at.policy.policy, peer) {
            Some(peers) if peers.known => pods.extend(peers.pods.into_iter().filter(|view| !view.pod.host_network)),
            _ => return Vec::new(),
        }
    }
    pods
}

/// The number, where the item is one port by its number.
pub fn single(port: &PortMatch) -> Option<u16> {
    match port.port {
        PortSpec::Range(first, last) if first == last => Some(first),
        _ => None,
    }
}

/// Whether any of the pods declares `port`.
pub fn declared(pods: &[PodView<'_>], protocol: Protocol, port: u16) -> bool {
    pods.iter().any(|view| view.pod.ports.iter().any(|p| p.protocol == protocol && p.port == port))
}

/// `http=8080/TCP, 9090/TCP`
pub fn declared_text(pods: &[PodView<'_>]) -> String {
    let mut shown: Vec<String> = Vec::new();
    for port in pods.iter().flat_map(|view| view.pod.ports.iter()) {
        let name = port.name.as_ref().map(|name| format!("{name}=")).unwrap_or_default();
        let text = format!("{name}{}/{}", port.port, port.protocol);
        if !shown.contains(&text) {
            shown.push(text);
        }
    }
    if shown.is_empty() { "no ports".to_owned() } else { list(&shown, 5) }
}
