//! The usual mistake behind a denied connection, and the smallest change that would allow it.
//!
//! A wrong hint is worse than none: each one rests on evidence in the connection, the policies and the index, never on a
//! guess of what was meant. Codes are ids of the lint catalogue where it has the mistake; the plain misses are `peer-label`, `peer-namespace`, `ip-block`, `port` and `no-rule`.

mod services;
mod text;

use std::fmt::{self, Display, Write};

use ipnet::IpNet;
use text::HintText;

use crate::cluster::Index;
use crate::cluster::index::PodView;
use crate::model::cluster::{
    Direction, Operator, Peer, PortMatch, PortSpec, Protocol, Requirement, Rule, Selector, TargetPort,
};
use crate::model::{Address, Hint, ServiceRef};
use crate::policy::evaluate::{PolicyEvaluation, PolicyResult, SideEvaluation, evaluate};
use crate::policy::explain::{ExplainedVerdict, explain};
use crate::policy::matching::{Match, Matcher, NAME_LABEL, UndeterminedReason, covers, in_block, selects};
use crate::policy::nearest::{NearestRule, as_pod};
use crate::policy::{CniOptions, Connection, PolicyIdentity, Transport, type_name};

/// The connection as the client opened it, which policy does not see.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientRequest<'a> {
    /// The service that the client connected to.
    pub service: Option<&'a ServiceRef>,
    /// The destination before translation.
    pub original: Option<&'a Address>,
    pub source_port: Option<u16>,
}

/// The source port of active FTP's data connections: the only one that a hint depends on.
pub const FTP_DATA: u16 = 20;
/// Where NodeLocal DNSCache listens unless configured otherwise.
pub(super) const NODE_LOCAL_DNS: [u8; 4] = [169, 254, 20, 10];

/// The hint for a denied connection, or for one that ICMP or a hostNetwork pod leaves undetermined.
pub fn hint(
    index: &Index,
    connection: &Connection<'_>,
    options: &CniOptions,
    request: ClientRequest<'_>,
) -> Option<Hint> {
    let evaluation = evaluate(index, connection, options);
    let explained = explain(index, connection, options, &evaluation);
    hint_of(index, connection, options, &evaluation, &explained, request)
}

/// As [`hint`], from what [`evaluate`] and [`explain`] returned.
pub fn hint_of<'a>(
    index: &Index,
    connection: &Connection<'a>,
    options: &CniOptions,
    evaluation: &PolicyEvaluation<'a>,
    explained: &ExplainedVerdict<'a>,
    request: ClientRequest<'_>,
) -> Option<Hint> {
    // The hint explains the first side that denies, and names the other, which would deny the connection still.
    let denies = |d: &Direction| matches!(evaluation.side(*d).result, PolicyResult::Denied);
    let Some(direction) = BOTH.into_iter().find(denies) else {
        return undetermined(index, connection, options, evaluation);
    };
    let matcher = Matcher::new(index, connection, options, direction);
    let side = evaluation.side(direction);
    let side_in_words = match direction {
        Direction::Egress => &explained.verdict.egress,
        Direction::Ingress => &explained.verdict.ingress,
    };
    let misses = side_in_words.nearest.as_ref().map_or(&[][..], |nearest| &nearest.misses);
    let nearest = explained.nearest[direction as usize]?;
    let denied = DeniedSide { matcher, side, nearest, misses, request, text: HintText { matcher } };
    let mut hint = denied.hint()?;
    append_other_side(&denied, evaluation, &mut hint.message);
    Some(hint)
}

/// Egress first: a packet meets its source's policies before its destination's.
const BOTH: [Direction; 2] = [Direction::Egress, Direction::Ingress];

fn undetermined(
    index: &Index,
    connection: &Connection<'_>,
    options: &CniOptions,
    evaluation: &PolicyEvaluation<'_>,
) -> Option<Hint> {
    BOTH.into_iter().find_map(|direction| {
        let (matcher, side) = (Matcher::new(index, connection, options, direction), evaluation.side(direction));
        match side.result {
            PolicyResult::Undetermined(UndeterminedReason::Icmp) => Some(icmp(&matcher, side)),
            PolicyResult::Undetermined(UndeterminedReason::HostNetwork) => host_network(&matcher),
            _ => None,
        }
    })
}

fn with_code(code: &'static str, message: String) -> Hint {
    Hint { code: code.into(), message }
}

/// Formats a message without intermediate strings.
macro_rules! message {
    ($($text:tt)*) => { $crate::policy::miss::text(256, format_args!($($text)*)) };
}
use message;

fn icmp(matcher: &Matcher<'_, '_>, side: &SideEvaluation<'_>) -> Hint {
    let by = side.isolated_by.iter().next().map(|p| format!(" ({}/{})", p.namespace, p.name)).unwrap_or_default();
    let message = message!(
        "NetworkPolicy can't allow ICMP: its rules name TCP, UDP and SCTP only. {} of {} is isolated{by}, and this CNI \
         decides whether ICMP passes: test with a TCP connection instead of ping.",
        type_name(matcher.direction),
        HintText { matcher: *matcher }.subject(),
    );
    with_code("icmp", message)
}

/// For a selector that matches a hostNetwork pod: on most CNIs it selects nothing, because policy sees the node's address.
fn host_network(matcher: &Matcher<'_, '_>) -> Option<Hint> {
    let view = as_pod(&matcher.peer().identity).filter(|view| view.pod.host_network)?;
    let ips: Vec<_> = view.pod.ips.iter().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })).collect();
    let address = if ips.is_empty() { "its node's address".to_owned() } else { ips.join(" and ") };
    let message = message!(
        "{}/{} uses its node's network, so most CNIs don't select it by its labels: allow {address} by ipBlock instead.",
        view.pod.namespace,
        view.pod.name,
    );
    Some(with_code("hostnet-peer", message))
}

fn append_other_side(denied: &DeniedSide<'_, '_>, evaluation: &PolicyEvaluation<'_>, message: &mut String) {
    if denied.matcher.direction == Direction::Egress && matches!(evaluation.ingress.result, PolicyResult::Denied) {
        let matcher = Matcher { direction: Direction::Ingress, ..denied.matcher };
        // Writing to a String can't fail.
        _ = write!(message, " Ingress of {} denies it too.", HintText { matcher }.subject());
    }
}

/// One denied side and its evidence.
struct DeniedSide<'o, 'a> {
    matcher: Matcher<'o, 'a>,
    side: &'o SideEvaluation<'a>,
    nearest: NearestRule<'a>,
    /// What the nearest rule misses, as in the record.
    misses: &'o [crate::model::Miss],
    request: ClientRequest<'o>,
    text: HintText<'o, 'a>,
}

impl<'a> DeniedSide<'_, 'a> {
    fn hint(&self) -> Option<Hint> {
        // From the most specific evidence to the plainest.
        self.types_missing()
            .or_else(|| self.dns())
            .or_else(|| self.api_server())
            .or_else(|| self.service_address_in_block())
            .or_else(|| self.pod_in_block())
            .or_else(|| self.dynamic_ports())
            .or_else(|| self.no_rules())
            .or_else(|| self.only_the_port())
            .or_else(|| self.only_the_peer())
            .or_else(|| self.far_off())
            .or_else(|| self.unlabelled())
    }

    fn direction(&self) -> Direction {
        self.matcher.direction
    }

    fn policy(&self) -> impl Display {
        let policy = self.nearest.policy;
        fmt::from_fn(move |f| write!(f, "{}/{}", policy.namespace, policy.name))
    }

    fn nearest_rule(&self) -> Option<&'a Rule> {
        self.nearest.policy.rules(self.direction()).get(self.nearest.rule?)
    }

    fn missed_port(&self) -> Option<&'a PortMatch> {
        self.nearest_rule()?.ports.as_deref()?.get(self.nearest.port?)
    }

    fn missed_peer(&self) -> Option<&'a Peer> {
        self.nearest_rule()?.peers.as_deref()?.get(self.nearest.peer?)
    }

    fn misses(&self) -> impl Display {
        fmt::from_fn(|f| {
            let mut misses = self.misses.iter().enumerate();
            misses.try_for_each(|(at, miss)| write!(f, "{}{}", if at == 0 { "" } else { "; " }, miss))
        })
    }

    fn protocol(&self) -> Option<Protocol> {
        match self.matcher.connection.transport {
            Transport::Named(protocol) => Some(protocol),
            _ => None,
        }
    }

    fn types_missing(&self) -> Option<Hint> {
        let direction = self.direction();
        let rule = self.nearest.rule.filter(|_| self.nearest.type_missing)?;
        let (policy, name) = (self.policy(), type_name(direction));
        let message = message!(
            "{policy} allows it by {direction}[{rule}], but its policyTypes does not list {name}, so the rule is not in \
             force: add {name} to policyTypes."
        );
        Some(with_code("types-missing", message))
    }

    fn no_rules(&self) -> Option<Hint> {
        if self.nearest.rule.is_some() {
            return None;
        }
        let direction = self.direction();
        let message = message!(
            "{} isolates {direction} of {} and no policy has an {direction} rule for it. Add one: {}",
            self.policy(),
            self.text.subject(),
            self.text.rule_item(self.nearest.policy)?,
        );
        Some(with_code("lockout", message))
    }

    fn place(&self) -> impl Display {
        let (direction, rule) = (self.direction(), self.nearest.rule.unwrap_or_default());
        fmt::from_fn(move |f| {
            write!(f, "{} {direction}[{rule}]", self.policy())?;
            match (self.nearest.peer, self.nearest.port) {
                (Some(peer), None) => write!(f, ".{}[{peer}]", direction.peers_field()),
                (None, Some(port)) => write!(f, ".ports[{port}]"),
                _ => Ok(()),
            }
        })
    }

    fn only_the_port(&self) -> Option<Hint> {
        let want = self.missed_port().filter(|_| self.nearest.peer.is_none())?;
        let (port, protocol) = (self.matcher.connection.port?, self.protocol()?);
        let place = self.place();
        if let Some((service, service_port)) = self.service_port_in(want) {
            let message = message!(
                "{place} holds {service_port}, the port of service {service}; policy sees the pod's own port: write \
                 {port}."
            );
            return Some(with_code("svc-port", message));
        }
        if let PortSpec::Named(name) = &want.port {
            let number = format!("port: {port}, protocol: {protocol}");
            let message = match as_pod(&self.matcher.connection.destination.identity) {
                None => format!("{place} names its port {name}, and only pods have port names: write {number}."),
                Some(view) => {
                    let same = |p: &&crate::model::cluster::ContainerPort| p.port == port && p.protocol == protocol;
                    let fix = match view.pod.ports.iter().find(same).and_then(|p| p.name.as_ref()) {
                        Some(right) if right != name => format!("port: {right}, or {number}"),
                        _ => number,
                    };
                    let missing = self.misses.first().map_or("", |miss| &*miss.have);
                    format!("{place} wants {want}, and the destination is {missing}: write {fix}.")
                }
            };
            return Some(with_code("named-port", message));
        }
        if want.protocol_defaulted && want.protocol != protocol && covers(want, port) {
            let message = message!(
                "{place} leaves protocol out, which means TCP; the packet is {port}/{protocol}: add protocol: {protocol}."
            );
            return Some(with_code("proto-default", message));
        }
        let message = message!(
            "{place} allows {want}; the packet is {port}/{protocol}: add {{{}}} to its ports.",
            self.text.port_fields()?
        );
        Some(with_code("port", message))
    }

    /// The service whose port the rule has in place of the pod's: the one that the client connected to, else one with the
    /// pod behind it.
    fn service_port_in(&self, want: &PortMatch) -> Option<(String, u16)> {
        let (port, protocol) = (self.matcher.connection.port?, self.protocol()?);
        if want.protocol != protocol {
            return None;
        }
        if let Some(service) = self.request.service {
            let request = service.port.filter(|p| *p != port && covers_exactly(want, *p))?;
            return Some((format!("{}/{}", service.namespace, service.name), request));
        }
        let view = as_pod(&self.matcher.connection.destination.identity)?;
        let behind = view.namespace.services().filter(|service| selects(service, &view.pod.labels));
        behind.flat_map(|service| service.ports.iter().map(move |p| (service, p))).find_map(|(service, p)| {
            let target = p.protocol == protocol && target_is(view, &p.target, protocol, port);
            (target && p.port != port && covers_exactly(want, p.port))
                .then(|| (format!("{}/{}", service.namespace, service.name), p.port))
        })
    }

    fn only_the_peer(&self) -> Option<Hint> {
        let peer = self.missed_peer().filter(|_| self.nearest.port.is_none())?;
        match (peer, &self.matcher.peer().identity) {
            (Peer::Pods { namespaces, pods }, PolicyIdentity::Pod(view)) if self.matcher.is_selectable(view) => {
                self.selectors(namespaces.as_ref(), pods.as_ref(), *view)
            }
            (Peer::Pods { .. }, PolicyIdentity::Pod(_)) => {
                let message = message!(
                    "{} selects by label, and {} uses its node's network: this CNI sees the node's address. Allow that: \
                     {}: [{}]",
                    self.place(),
                    self.text.peer(),
                    self.direction().peers_field(),
                    self.text.peer_item(self.nearest.policy)?,
                );
                Some(with_code("hostnet-peer", message))
            }
            (Peer::Pods { .. }, _) => Some(with_code("ip-block", self.outside()?)),
            (Peer::Block { cidr, except }, identity) => self.block(cidr, except, identity),
        }
    }

    fn outside(&self) -> Option<String> {
        Some(message!("{} selects pods, and {} is not a pod: {}", self.place(), self.text.peer(), self.add_item()?))
    }

    fn selectors(&self, namespaces: Option<&Selector>, pods: Option<&Selector>, view: PodView<'a>) -> Option<Hint> {
        let place = self.place();
        let namespace_missed = matches!(self.matcher.namespace_matches(self.nearest.policy, namespaces), Match::No(_));
        let pod_missed = pods.is_some_and(|s| !s.matches(&view.pod.labels));
        match (namespace_missed, pod_missed, namespaces) {
            (true, _, Some(selector)) if let Some(key) = self.namespace_name_label(selector, view) => {
                let namespace = &view.pod.namespace;
                let message = message!(
                    "{place} wants {key}={namespace}, but namespace {namespace} has no label {key}: write \
                     {NAME_LABEL}: {namespace}, which every namespace has."
                );
                Some(with_code("ns-label", message))
            }
            (true, false, None) => {
                let message = message!(
                    "{place} has only a podSelector, which selects in namespace {}; {} is in another namespace: add \
                     to the same item namespaceSelector: {{matchLabels: {{{NAME_LABEL}: {}}}}}",
                    self.nearest.policy.namespace,
                    self.text.peer(),
                    view.pod.namespace,
                );
                Some(with_code("peer-namespace", message))
            }
            (true, false, Some(_)) => Some(with_code("peer-namespace", self.add_peer()?)),
            (false, true, _) => Some(with_code("peer-label", self.add_peer()?)),
            _ => None,
        }
    }

    fn add_peer(&self) -> Option<String> {
        Some(message!("Nearest is {}: {}. To allow it, {}", self.policy(), self.misses(), self.add_item()?))
    }

    fn add_item(&self) -> Option<impl Display> {
        let (direction, rule) = (self.direction(), self.nearest.rule?);
        let item = self.text.peer_item(self.nearest.policy)?;
        Some(fmt::from_fn(move |f| write!(f, "add to {direction}[{rule}].{} the item {item}", direction.peers_field())))
    }

    /// A peer without a label by which a policy could select it.
    fn unlabelled(&self) -> Option<Hint> {
        let view = as_pod(&self.matcher.peer().identity).filter(|view| !view.pod.host_network)?;
        if self.text.peer_item(self.nearest.policy).is_some() {
            return None;
        }
        let message = message!(
            "No rule allows {}, and it has no label to select it by: give its workload one (such as app: {}), and allow \
             that label.",
            self.text.peer(),
            view.pod.owner.as_ref().map_or(&view.pod.name, |owner| &owner.name),
        );
        Some(with_code("peer-label", message))
    }

    /// The key of a requirement that wants the namespace's name in a label that the namespace does not have.
    fn namespace_name_label<'s>(&self, selector: &'s Selector, view: PodView<'a>) -> Option<&'s str> {
        let labels = view.namespace.labels()?;
        let mut missed = selector.requirements.iter().filter(|r| !r.matches(labels));
        let wants_name = |r: &&Requirement| {
            let named = matches!(&r.operator, Operator::In(values) if values.contains(&view.pod.namespace));
            named && labels.get(&r.key).is_none() && *r.key != *NAME_LABEL
        };
        let first = missed.next().filter(wants_name)?;
        missed.next().is_none().then_some(&*first.key)
    }

    fn block(&self, cidr: &IpNet, except: &[IpNet], identity: &PolicyIdentity<'_>) -> Option<Hint> {
        let place = self.place();
        let addresses = self.matcher.peer_addresses();
        let first = addresses.first()?.to_canonical();
        if cidr.prefix_len() == 0 && addresses.iter().all(|ip| ip.to_canonical().is_ipv4() != cidr.addr().is_ipv4()) {
            let (this, other) = if first.is_ipv4() { ("IPv6", "0.0.0.0/0") } else { ("IPv4", "::/0") };
            let message = message!(
                "{place} allows {cidr}, which is {this} only, and the peer is {first}: add an ipBlock with cidr {other}."
            );
            return Some(with_code("family", message));
        }
        if let Some(hole) = except.iter().find(|e| in_block(e, &[], first)) {
            let message = message!(
                "{place} allows {cidr} except {hole}, and {first} lies in that exception: {}",
                self.add_item()?,
            );
            return Some(with_code("ip-block", message));
        }
        if matches!((identity, self.direction()), (PolicyIdentity::Node(_), Direction::Ingress)) {
            let message = message!(
                "{place} allows {cidr}; the packet came with the address of {}, as clients of a NodePort or load \
                 balancer do after SNAT: set externalTrafficPolicy: Local on the service, or allow {}",
                self.text.peer(),
                self.text.peer_item(self.nearest.policy)?,
            );
            return Some(with_code("snat-source", message));
        }
        Some(with_code("ip-block", self.add_peer()?))
    }

    /// For a rule that misses in two parts or more: the change is a rule of its own.
    fn far_off(&self) -> Option<Hint> {
        let message = message!(
            "No rule comes near; nearest is {}: {}. To allow it, add a rule: {}",
            self.policy(),
            self.misses(),
            self.text.rule_item(self.nearest.policy)?,
        );
        Some(with_code("no-rule", message))
    }
}

fn covers_exactly(want: &PortMatch, port: u16) -> bool {
    want.port == PortSpec::Range(port, port)
}

fn target_is(view: PodView<'_>, target: &TargetPort, protocol: Protocol, port: u16) -> bool {
    match target {
        TargetPort::Number(number) => *number == port,
        TargetPort::Name(name) => {
            view.pod.ports.iter().any(|p| p.name.as_ref() == Some(name) && p.protocol == protocol && p.port == port)
        }
    }
}
