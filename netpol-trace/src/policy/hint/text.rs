//! Renders the endpoints in words, and the change as YAML in one line.

use std::fmt::{self, Display};
use std::net::IpAddr;

use crate::cluster::index::PodView;
use crate::model::Str;
use crate::model::cluster::{Direction, Labels, Policy};
use crate::policy::matching::{Matcher, NAME_LABEL};
use crate::policy::nearest::as_pod;
use crate::policy::suggest::is_stable;
use crate::policy::{PolicyEndpoint, PolicyIdentity, Transport};

/// Labels that name the application. Where a pod has one of these, the selector has only these.
const NAMING: [&str; 4] = ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app", "k8s-app"];
const LABELS_AT_MOST: usize = 4;

pub(super) struct HintText<'o, 'a> {
    pub matcher: Matcher<'o, 'a>,
}

impl HintText<'_, '_> {
    /// The pod whose side denies.
    pub(super) fn subject(&self) -> impl Display {
        endpoint(match self.matcher.direction {
            Direction::Egress => &self.matcher.connection.source,
            Direction::Ingress => &self.matcher.connection.destination,
        })
    }

    /// The other endpoint.
    pub(super) fn peer(&self) -> impl Display {
        endpoint(self.matcher.peer())
    }

    /// `{port: 80, protocol: TCP}`
    pub(super) fn port_item(&self) -> Option<impl Display> {
        let fields = self.port_fields()?;
        Some(fmt::from_fn(move |f| write!(f, "{{{fields}}}")))
    }

    pub(super) fn port_fields(&self) -> Option<impl Display + use<>> {
        let Transport::Named(protocol) = self.matcher.connection.transport else { return None };
        // Port 0 can be sent to, but not written in a policy.
        let port = self.matcher.connection.port.filter(|port| *port > 0)?;
        Some(fmt::from_fn(move |f| write!(f, "port: {port}, protocol: {protocol}")))
    }

    /// An item of `from` or `to` that matches the other endpoint, and as little else as its labels allow. `None`: a pod
    /// without a label to select it by, an endpoint without an address, or an address whose owner is not known, because
    /// another pod may have it tomorrow.
    pub(super) fn peer_item(&self, policy: &Policy) -> Option<impl Display> {
        let peer = self.matcher.peer();
        if matches!(peer.identity, PolicyIdentity::Unknown) {
            return None;
        }
        Some(match as_pod(&peer.identity).filter(|view| !view.pod.host_network) {
            Some(PodView { pod, .. }) => {
                let elsewhere = (pod.namespace != policy.namespace).then_some(&*pod.namespace);
                PeerItem::Pods(elsewhere, stable(&pod.labels)?)
            }
            None => PeerItem::Block(*self.matcher.peer_addresses().first()?),
        })
    }

    /// A whole rule: `{from: […], ports: […]}`.
    pub(super) fn rule_item(&self, policy: &Policy) -> Option<impl Display> {
        let field = self.matcher.direction.peers_field();
        let (peer, port) = (self.peer_item(policy)?, self.port_item()?);
        Some(fmt::from_fn(move |f| write!(f, "{{{field}: [{peer}], ports: [{port}]}}")))
    }
}

/// An item of `from` or `to`.
enum PeerItem<'a> {
    Block(IpAddr),
    /// The namespace, where it is not the policy's own.
    Pods(Option<&'a str>, StableLabels<'a>),
}

impl Display for PeerItem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerItem::Block(ip) => match ip.to_canonical() {
                IpAddr::V4(ip) => write!(f, "{{ipBlock: {{cidr: {ip}/32}}}}"),
                IpAddr::V6(ip) => write!(f, "{{ipBlock: {{cidr: '{ip}/128'}}}}"),
            },
            PeerItem::Pods(None, labels) => write!(f, "{{podSelector: {{matchLabels: {{{labels}}}}}}}"),
            PeerItem::Pods(Some(namespace), labels) => write!(
                f,
                "{{namespaceSelector: {{matchLabels: {{{NAME_LABEL}: {}}}}}, podSelector: {{matchLabels: {{{labels}}}}}}}",
                scalar(namespace),
            ),
        }
    }
}

/// The labels to select a pod by: those that name its application, else all that stay the same.
#[derive(Clone, Copy)]
struct StableLabels<'a> {
    labels: &'a Labels,
    naming: bool,
}

/// `None`: the pod has no such label.
fn stable(labels: &Labels) -> Option<StableLabels<'_>> {
    [true, false]
        .map(|naming| StableLabels { labels, naming })
        .into_iter()
        .find(|labels| labels.pairs().next().is_some())
}

impl<'a> StableLabels<'a> {
    fn pairs(self) -> impl Iterator<Item = (&'a Str, &'a Str)> {
        let keep = move |key: &str| if self.naming { NAMING.contains(&key) } else { is_stable(key) };
        self.labels.iter().filter(move |(key, _)| keep(key)).take(LABELS_AT_MOST)
    }
}

impl Display for StableLabels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pairs()
            .enumerate()
            .try_for_each(|(at, (key, value))| write!(f, "{}{key}: {}", if at == 0 { "" } else { ", " }, scalar(value)))
    }
}

/// A label's value in YAML: quoted where it would be read as something else than text.
fn scalar(value: &str) -> impl Display {
    let plain = value.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"]
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word));
    fmt::from_fn(move |f| if plain { f.write_str(value) } else { write!(f, "'{value}'") })
}

fn endpoint<'a>(endpoint: &PolicyEndpoint<'a>) -> impl Display + use<'a> {
    let PolicyEndpoint { identity, ip, .. } = *endpoint;
    fmt::from_fn(move |f| match (&identity, ip) {
        (PolicyIdentity::Pod(view), _) => write!(f, "{}/{}", view.pod.namespace, view.pod.name),
        (PolicyIdentity::Node(name), _) => write!(f, "node {name}"),
        (PolicyIdentity::External | PolicyIdentity::Unknown, Some(ip)) => ip.fmt(f),
        (PolicyIdentity::External, None) => f.write_str("an address outside"),
        (PolicyIdentity::Unknown, None) => f.write_str("an unknown endpoint"),
    })
}
