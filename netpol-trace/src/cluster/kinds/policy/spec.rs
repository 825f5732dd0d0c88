//! The rules and selectors of a NetworkPolicy, with the checks of the API server's validation
//! (pkg/apis/networking/validation).

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::super::super::decode::meta::{self, Port};
use super::super::super::decode::{Violations, quoted};
use super::super::super::yaml::Path;
use crate::model::Direction;
use crate::model::cluster::{Operator, Peer, PortMatch, PortSpec, Requirement, Rule, Selector};

/// A selector with more requirements or values is refused: each is compared for every pod and packet.
const MAX_REQUIREMENTS: usize = 1_000;
const MAX_VALUES: usize = 10_000;
const MAX_ITEMS: usize = 10_000;

pub(super) fn types(types: Option<&[String]>, path: &Path, v: &mut Violations) -> Option<Box<[Direction]>> {
    let types = types.filter(|types| !types.is_empty())?;
    if types.len() > 2 {
        v.add(path, "more than two policy types: expected Ingress, Egress or both");
        return None;
    }
    let mut declared = Vec::new();
    for (i, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => declared.push(Direction::Ingress),
            "Egress" => declared.push(Direction::Egress),
            other => {
                v.add(&path.index(i), format!("unknown policy type {}: expected Ingress or Egress", quoted(other)))
            }
        }
    }
    Some(declared.into())
}

pub(super) type RuleParts<'a> =
    (Option<&'a [networking::NetworkPolicyPeer]>, Option<&'a [networking::NetworkPolicyPort]>);

pub(super) fn rules(rules: &[RuleParts<'_>], direction: Direction, spec: &Path, v: &mut Violations) -> Box<[Rule]> {
    let path = spec.field(direction.as_str());
    if too_many(rules.len(), &path, v) {
        return Box::default();
    }
    let rule = |(i, (peers, ports)): (usize, &RuleParts<'_>)| {
        let path = path.index(i);
        let peers_path = path.field(direction.peers_field());
        let ports_path = path.field("ports");
        let peers = peers.filter(|list| !too_many(list.len(), &peers_path, v));
        let peers =
            peers.map(|list| list.iter().enumerate().filter_map(|(i, p)| peer(p, &peers_path.index(i), v)).collect());
        let ports = ports.filter(|list| !too_many(list.len(), &ports_path, v));
        let ports = ports.map(|list| list.iter().enumerate().map(|(i, p)| port(p, &ports_path.index(i), v)).collect());
        Rule { peers, ports }
    };
    rules.iter().enumerate().map(rule).collect()
}

fn too_many(count: usize, path: &Path, v: &mut Violations) -> bool {
    let many = count > MAX_ITEMS;
    if many {
        v.add(path, format!("{count} items: at most {MAX_ITEMS} are supported"));
    }
    many
}

fn peer(peer: &networking::NetworkPolicyPeer, path: &Path, v: &mut Violations) -> Option<Peer> {
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        (None, None, None) => {
            v.add(path, "an empty peer; for every pod of every namespace write `namespaceSelector: {}`, for every peer leave the list out");
            None
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            v.add(path, "ipBlock together with a selector; make them two items of the list");
            None
        }
        (Some(block), None, None) => ip_block(block, &path.field("ipBlock"), v),
        (None, namespaces, pods) => Some(Peer::Pods {
            namespaces: namespaces.as_ref().map(|s| selector(s, &path.field("namespaceSelector"), v)),
            pods: pods.as_ref().map(|s| selector(s, &path.field("podSelector"), v)),
        }),
    }
}

fn ip_block(block: &networking::IPBlock, path: &Path, v: &mut Violations) -> Option<Peer> {
    let cidr = cidr(&block.cidr, &path.field("cidr"), v)?;
    let mut except: Vec<IpNet> = Vec::new();
    let listed = block.except.as_deref().unwrap_or_default();
    if too_many(listed.len(), &path.field("except"), v) {
        return None;
    }
    for (i, text) in listed.iter().enumerate() {
        let path = path.field("except").index(i);
        let Some(hole) = self::cidr(text, &path, v) else { continue };
        if !cidr.contains(&hole) || cidr.prefix_len() >= hole.prefix_len() {
            v.add(&path, format!("{hole} is not inside cidr {cidr}: each except must be a smaller range in it"));
        }
        except.push(hole);
    }
    Some(Peer::Block { cidr, except: except.into() })
}

fn cidr(text: &str, path: &Path, v: &mut Violations) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        // The API server takes host bits; what they mean is the network.
        Ok(net) => Some(net.trunc()),
        Err(_) => {
            let fix = match text.parse::<std::net::IpAddr>() {
                Ok(ip) => format!("; for this one address write {ip}/{}", if ip.is_ipv4() { 32 } else { 128 }),
                Err(_) => "; for example 10.0.0.0/8 or fd00::/8".to_owned(),
            };
            v.add(path, format!("invalid CIDR {}{fix}", quoted(text)));
            None
        }
    }
}

fn port(port: &networking::NetworkPolicyPort, path: &Path, v: &mut Violations) -> PortMatch {
    let protocol = meta::protocol(port.protocol.as_deref(), path, v);
    let end_path = path.field("endPort");
    let spec = match (&port.port, port.end_port) {
        (None, None) => PortSpec::Any,
        (None, Some(_)) => {
            v.add(&end_path, "endPort without port");
            PortSpec::Any
        }
        (Some(first), end) => match (meta::port(first, &path.field("port"), v), end) {
            (Port::Name(name), None) => PortSpec::Named(name),
            (Port::Name(name), Some(_)) => {
                v.add(
                    &end_path,
                    format!("endPort with the named port {}: a range needs a number as port", quoted(&name)),
                );
                PortSpec::Named(name)
            }
            (Port::Number(first), None) => PortSpec::Range(first, first),
            (Port::Number(first), Some(end)) => {
                let last = meta::port_number(end, &end_path, v);
                if last < first && last > 0 {
                    v.add(&end_path, format!("endPort {last} is below port {first}"));
                }
                PortSpec::Range(first, last)
            }
        },
    };
    // The field as written: the API server adds the default, a file does not.
    PortMatch { protocol, protocol_defaulted: port.protocol.is_none(), port: spec }
}

/// A label selector with all its requirements.
pub(super) fn selector(selector: &LabelSelector, path: &Path, v: &mut Violations) -> Selector {
    let labels = meta::labels(selector.match_labels.as_ref(), &path.field("matchLabels"), v);
    let mut requirements: Vec<Requirement> = labels
        .iter()
        .map(|(key, value)| Requirement { key: key.clone(), operator: Operator::In([value.clone()].into()) })
        .collect();
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    let path = path.field("matchExpressions");
    if requirements.len() + expressions.len() > MAX_REQUIREMENTS {
        let count = requirements.len() + expressions.len();
        v.add(&path, format!("{count} requirements in one selector: at most {MAX_REQUIREMENTS} are supported"));
        return Selector::default();
    }
    for (i, expression) in expressions.iter().enumerate() {
        let path = path.index(i);
        meta::label_key(&expression.key, &path.field("key"), v);
        let values = expression.values.as_deref().unwrap_or_default();
        let values_path = path.field("values");
        if values.len() > MAX_VALUES {
            v.add(&values_path, format!("{} values: at most {MAX_VALUES} are supported", values.len()));
            continue;
        }
        for (i, value) in values.iter().enumerate() {
            meta::label_value(value, &values_path.index(i), v);
        }
        let mut need_values = |needed: bool| {
            if needed && values.is_empty() {
                v.add(&values_path, format!("{} needs at least one value", expression.operator));
            } else if !needed && !values.is_empty() {
                v.add(&values_path, format!("{} takes no values", expression.operator));
            }
        };
        let list = || values.iter().map(|value| value.as_str().into()).collect();
        let operator = match expression.operator.as_str() {
            "In" => {
                need_values(true);
                Operator::In(list())
            }
            "NotIn" => {
                need_values(true);
                Operator::NotIn(list())
            }
            "Exists" => {
                need_values(false);
                Operator::Exists
            }
            "DoesNotExist" => {
                need_values(false);
                Operator::DoesNotExist
            }
            other => {
                v.add(
                    &path.field("operator"),
                    format!("unknown operator {}: expected In, NotIn, Exists or DoesNotExist", quoted(other)),
                );
                continue;
            }
        };
        requirements.push(Requirement { key: expression.key.as_str().into(), operator });
    }
    Selector { requirements: requirements.into() }
}
