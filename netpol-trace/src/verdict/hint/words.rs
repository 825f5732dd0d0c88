//! The ends in words, and the change as YAML in one line.

use std::borrow::Cow;
use std::net::IpAddr;

use super::super::matching::{Matcher, NAME_LABEL};
use super::super::nearest::as_pod;
use super::super::{End, Transport, Who};
use crate::cluster::model::{Direction, Labels, Policy};

/// Labels that change from one rollout, revision or replica to the next: never to select by.
const UNSTABLE: [&str; 10] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "job-name",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
];
/// Labels that name the application: these, where a pod has them, and no others.
const NAMING: [&str; 4] = ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app", "k8s-app"];
const LABELS_AT_MOST: usize = 4;

pub(super) struct Words<'o, 'a> {
    pub matcher: Matcher<'o, 'a>,
}

impl Words<'_, '_> {
    /// The pod whose policy is spoken of.
    pub(super) fn subject(&self) -> String {
        end(match self.matcher.direction {
            Direction::Egress => &self.matcher.connection.source,
            Direction::Ingress => &self.matcher.connection.destination,
        })
    }

    /// The other end.
    pub(super) fn peer(&self) -> String {
        end(self.matcher.peer())
    }

    /// `{port: 80, protocol: TCP}`
    pub(super) fn port_item(&self) -> Option<String> {
        Some(format!("{{{}}}", self.port_fields()?))
    }

    pub(super) fn port_fields(&self) -> Option<String> {
        let Transport::Named(protocol) = self.matcher.connection.transport else { return None };
        // Port 0 can be sent to, but not written in a policy.
        let port = self.matcher.connection.port.filter(|port| *port > 0)?;
        Some(format!("port: {port}, protocol: {protocol}"))
    }

    /// An item of `from` or `to` that matches the other end, and as little else as its labels allow. `None`: a pod
    /// without a label to select it by, an end without an address, or one whose owner is not known: its address may be
    /// another's tomorrow.
    pub(super) fn peer_item(&self, policy: &Policy) -> Option<String> {
        if matches!(self.matcher.peer().who, Who::Unknown) {
            return None;
        }
        let Some(view) = as_pod(&self.matcher.peer().who).filter(|view| !view.pod.host_network) else {
            return self.matcher.peer_addresses().first().map(|ip| block(*ip));
        };
        let labels = stable(&view.pod.labels);
        if labels.is_empty() {
            return None;
        }
        let pods = format!("podSelector: {{matchLabels: {{{}}}}}", labels.join(", "));
        Some(if view.pod.namespace == policy.namespace {
            format!("{{{pods}}}")
        } else {
            let namespace = scalar(&view.pod.namespace);
            format!("{{namespaceSelector: {{matchLabels: {{{NAME_LABEL}: {namespace}}}}}, {pods}}}")
        })
    }

    /// A whole rule: `{from: […], ports: […]}`.
    pub(super) fn rule_item(&self, policy: &Policy) -> Option<String> {
        let field = self.matcher.direction.peers_field();
        Some(format!("{{{field}: [{}], ports: [{}]}}", self.peer_item(policy)?, self.port_item()?))
    }
}

fn block(ip: IpAddr) -> String {
    let ip = ip.to_canonical();
    match ip {
        IpAddr::V4(_) => format!("{{ipBlock: {{cidr: {ip}/32}}}}"),
        IpAddr::V6(_) => format!("{{ipBlock: {{cidr: '{ip}/128'}}}}"),
    }
}

/// The labels to select a pod by: those that name its application, else all that stay.
fn stable(labels: &Labels) -> Vec<String> {
    let pairs = |keep: &dyn Fn(&str) -> bool| -> Vec<String> {
        let kept = labels.iter().filter(|(key, _)| keep(key));
        kept.take(LABELS_AT_MOST).map(|(key, value)| format!("{key}: {}", scalar(value))).collect()
    };
    let naming = pairs(&|key| NAMING.contains(&key));
    if naming.is_empty() { pairs(&|key| !UNSTABLE.contains(&key)) } else { naming }
}

/// A label's value in YAML: quoted where it would be read as something else than text.
fn scalar(value: &str) -> Cow<'_, str> {
    let plain = value.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"]
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word));
    if plain { value.into() } else { format!("'{value}'").into() }
}

fn end(end: &End<'_>) -> String {
    match (&end.who, end.ip) {
        (Who::Pod(view), _) => format!("{}/{}", view.pod.namespace, view.pod.name),
        (Who::Node(name), _) => format!("node {name}"),
        (Who::External | Who::Unknown, Some(ip)) => ip.to_string(),
        (Who::External, None) => "an address outside".to_owned(),
        (Who::Unknown, None) => "an unknown end".to_owned(),
    }
}

pub(super) fn capital(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "Egress",
        Direction::Ingress => "Ingress",
    }
}
