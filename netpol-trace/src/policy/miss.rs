//! Renders what a rule missed, for the record: the field's path, what the rule wants, what the connection has.

use std::fmt::{self, Write};

use ipnet::IpNet;

use crate::cluster::index::PodView;
use crate::model::cluster::{Labels, Peer, Policy, PortMatch, PortSpec, Requirement, Selector};
use crate::policy::matching::{Match, Matcher, in_block};
use crate::policy::nearest::{NearestRule, as_pod};
use crate::policy::{PolicyIdentity, Transport, type_name};

/// Longest text of one `want` or `have`, in characters: selectors are untrusted input, and a record's line is bounded.
const TEXT_AT_MOST: usize = 256;
/// Capacity for a field's path, in bytes: most are shorter.
const FIELD: usize = 48;
/// Labels, ports or exceptions that one text names.
const ITEMS_AT_MOST: usize = 4;

impl NearestRule<'_> {
    /// The parts of the rule that did not match, in the order ports, namespace, pod.
    pub(super) fn misses(&self, matcher: &Matcher<'_, '_>) -> Vec<crate::model::Miss> {
        let direction = matcher.direction;
        let Some(at) = self.rule else {
            return vec![miss(direction.to_string(), "a rule".to_owned(), "no rules".to_owned())];
        };
        if self.type_missing {
            let have: Vec<_> = match &self.policy.declared_types {
                Some(types) => types.iter().copied().map(type_name).collect(),
                None => vec!["absent, so Ingress only"],
            };
            return vec![miss("policyTypes".to_owned(), type_name(direction).to_owned(), have.join(","))];
        }
        let mut misses = Vec::new();
        let Some(rule) = self.policy.rules(direction).get(at) else { return misses };
        if let Some((i, port)) = self.port.and_then(|i| Some((i, rule.ports.as_deref()?.get(i)?))) {
            misses.push(matcher.port_miss(port, text(32, format_args!("{direction}[{at}].ports[{i}]"))));
        }
        if let Some((i, peer)) = self.peer.and_then(|i| Some((i, rule.peers.as_deref()?.get(i)?))) {
            let field = format_args!("{direction}[{at}].{}[{i}]", direction.peers_field());
            matcher.peer_misses(self.policy, peer, field, &mut misses);
        }
        misses
    }
}

fn miss(field: String, want: String, have: String) -> crate::model::Miss {
    crate::model::Miss { field, want, have }
}

impl Matcher<'_, '_> {
    pub(super) fn port_miss(&self, want: &PortMatch, field: String) -> crate::model::Miss {
        miss(field, bounded(want), self.port_text(want))
    }

    /// What the connection has where the rule wants `want`.
    fn port_text(&self, want: &PortMatch) -> String {
        let packet = match (self.connection.transport, self.connection.port) {
            (Transport::Named(protocol), Some(port)) => text(16, format_args!("{port}/{protocol}")),
            (Transport::Named(protocol), None) => protocol.to_string(),
            (Transport::Icmp, _) => "ICMP".to_owned(),
            (Transport::Other(number), _) => format!("protocol {number}"),
        };
        let PortSpec::Named(name) = &want.port else { return packet };
        let Some(view) = as_pod(&self.connection.destination.identity) else {
            return format!("{packet} (only pods have port names)");
        };
        let named = |same_name: bool| {
            let ports = view.pod.ports.iter().filter(move |p| !same_name || p.name.as_ref() == Some(name));
            list(ports.filter_map(|p| Some(format!("{}={}/{}", p.name.as_ref()?, p.port, p.protocol))))
        };
        if view.pod.ports.iter().any(|p| p.name.as_ref() == Some(name)) {
            format!("{packet} (pod has {})", named(true))
        } else if view.pod.ports.iter().any(|p| p.name.is_some()) {
            format!("{packet} (pod has {})", named(false))
        } else {
            format!("{packet} (pod has no named ports)")
        }
    }

    pub(super) fn peer_misses(
        &self,
        policy: &Policy,
        peer: &Peer,
        field: fmt::Arguments<'_>,
        misses: &mut Vec<crate::model::Miss>,
    ) {
        match peer {
            Peer::Pods { namespaces, pods } => {
                self.selector_misses(policy, namespaces.as_ref(), pods.as_ref(), field, misses);
            }
            Peer::Block { cidr, except } => {
                let field = text(FIELD, format_args!("{field}.ipBlock"));
                misses.push(miss(field, block_text(cidr, except, self), self.addresses_text()));
            }
        }
    }

    fn selector_misses(
        &self,
        policy: &Policy,
        namespaces: Option<&Selector>,
        pods: Option<&Selector>,
        field: fmt::Arguments<'_>,
        misses: &mut Vec<crate::model::Miss>,
    ) {
        let Some(view) = as_pod(&self.peer().identity).filter(|view| self.is_selectable(view)) else {
            let want = match (namespaces, pods) {
                (None, Some(pods)) => bounded(format_args!("pods {pods} in namespace {}", policy.namespace)),
                (Some(namespaces), None) => bounded(format_args!("pods in namespaces {namespaces}")),
                (Some(namespaces), Some(pods)) => bounded(format_args!("pods {pods} in namespaces {namespaces}")),
                (None, None) => format!("pods in namespace {}", policy.namespace),
            };
            misses.push(miss(field.to_string(), want, format!("{} ({})", self.addresses_text(), self.not_a_pod())));
            return;
        };
        if matches!(self.namespace_matches(policy, namespaces), Match::No(_)) {
            let (want, have) = match namespaces {
                None => (
                    format!("namespace {} (the policy's own: no namespaceSelector)", policy.namespace),
                    format!("namespace {}", view.pod.namespace),
                ),
                Some(selector) => self.namespace_texts(selector, view),
            };
            misses.push(miss(text(FIELD, format_args!("{field}.namespaceSelector")), want, have));
        }
        if let Some(selector) = pods
            && !selector.matches(&view.pod.labels)
        {
            let missed = || selector.requirements.iter().filter(|r| !r.matches(&view.pod.labels));
            let (want, have) = (list(missed()), list(missed().map(|r| label_text(r, &view.pod.labels))));
            misses.push(miss(text(FIELD, format_args!("{field}.podSelector")), want, have));
        }
    }

    fn namespace_texts(&self, selector: &Selector, view: PodView<'_>) -> (String, String) {
        let name = Labels::from_iter([(crate::policy::matching::NAME_LABEL, &*view.pod.namespace)]);
        let labels = view.namespace.labels().unwrap_or(&name);
        let missed = || selector.requirements.iter().filter(|r| self.misses_namespace(r, view));
        (list(missed()), list(missed().map(|r| label_text(r, labels))))
    }

    fn addresses_text(&self) -> String {
        match self.peer_addresses() {
            [] => "no address".to_owned(),
            addresses => list(addresses.iter()),
        }
    }

    /// Why selectors can't select the peer.
    fn not_a_pod(&self) -> &'static str {
        match self.peer().identity {
            PolicyIdentity::Pod(_) => "a hostNetwork pod: it looks like its node",
            PolicyIdentity::Node(_) => "a node, not a pod",
            PolicyIdentity::External | PolicyIdentity::Unknown => "outside of the cluster",
        }
    }
}

/// What the labels have under the requirement's key.
fn label_text<'a>(requirement: &'a Requirement, labels: &'a Labels) -> impl fmt::Display {
    fmt::from_fn(move |f| match labels.get(&requirement.key) {
        Some(value) => write!(f, "{}={value}", requirement.key),
        None => write!(f, "no {} label", requirement.key),
    })
}

/// `10.0.0.0/8 except 10.2.0.0/16`; of many exceptions, those that hold the address come first.
fn block_text(cidr: &IpNet, except: &[IpNet], matcher: &Matcher<'_, '_>) -> String {
    if except.is_empty() {
        return cidr.to_string();
    }
    let holds = |e: &&IpNet| matcher.peer_addresses().iter().any(|ip| in_block(e, &[], *ip));
    let first = except.iter().filter(holds);
    let then = except.iter().filter(|e| !holds(e));
    format!("{cidr} except {}", list(first.chain(then)))
}

/// The first [`ITEMS_AT_MOST`], and how many more there are.
fn list<T: fmt::Display>(items: impl Iterator<Item = T>) -> String {
    let mut text = Bounded::new();
    let mut items = items.enumerate();
    for (i, item) in items.by_ref().take(ITEMS_AT_MOST) {
        _ = write!(text, "{}{item}", if i == 0 { "" } else { "," });
    }
    match items.count() {
        0 => text.0,
        more => text.0 + &format!(" and {more} more"),
    }
}

/// Formats into a string with room for `capacity` bytes, which saves the reallocations of writing piece by piece.
pub(super) fn text(capacity: usize, text: fmt::Arguments<'_>) -> String {
    let mut out = String::with_capacity(capacity);
    // Writing to a String can't fail.
    _ = out.write_fmt(text);
    out
}

/// At most [`TEXT_AT_MOST`] characters of it.
pub(crate) fn bounded(text: impl fmt::Display) -> String {
    let mut out = Bounded::new();
    _ = write!(out, "{text}");
    out.0
}

/// Takes [`TEXT_AT_MOST`] characters, then an ellipsis, then nothing more.
struct Bounded(String, usize);

impl Bounded {
    fn new() -> Bounded {
        // Most texts are shorter, and a text is written piece by piece.
        Bounded(String::with_capacity(64), 0)
    }
}

impl Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // The fast path: there are no more characters than bytes.
        if self.1 + s.len() <= TEXT_AT_MOST {
            self.0.push_str(s);
            self.1 += s.chars().count();
            return Ok(());
        }
        for c in s.chars() {
            match self.1.cmp(&TEXT_AT_MOST) {
                std::cmp::Ordering::Less => self.0.push(c),
                std::cmp::Ordering::Equal => self.0.push('…'),
                std::cmp::Ordering::Greater => return Err(fmt::Error),
            }
            self.1 += 1;
        }
        Ok(())
    }
}
