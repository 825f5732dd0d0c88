//! Nodes: their addresses, and the pod CIDRs that they declare.

mod annotations;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::super::change::{Key, Scope};
use super::super::decode::meta::CheckedMetadata;
use super::super::decode::{Checked, Violations, quoted, wire};
use super::super::index::Index;
use super::super::resource::{KindInfo, Resource, Watched};
use super::super::yaml::Path;
use super::Kind;
use crate::model::cluster::Node;

pub(in crate::cluster) const INFO: KindInfo =
    KindInfo { name: "Node", plural: "nodes", watched: Watched::ByPeers, ..KindInfo::DEFAULT };

/// A node without its images, conditions and capacity.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::cluster) struct NodeWire {
    #[serde(deserialize_with = "wire::metadata_with_annotations")]
    metadata: ObjectMeta,
    spec: NodeSpecWire,
    status: NodeStatusWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpecWire {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatusWire {
    addresses: Option<Vec<core::NodeAddress>>,
}

impl From<NodeWire> for core::Node {
    fn from(NodeWire { metadata, spec, status }: NodeWire) -> core::Node {
        let NodeSpecWire { pod_cidr, pod_cidrs } = spec;
        let spec = core::NodeSpec { pod_cidr, pod_cidrs, ..core::NodeSpec::default() };
        let status = core::NodeStatus { addresses: status.addresses, ..core::NodeStatus::default() };
        core::Node { metadata, spec: Some(spec), status: Some(status) }
    }
}

impl Resource for Node {
    type Api = core::Node;
    type Wire = NodeWire;

    fn metadata(api: &core::Node) -> &ObjectMeta {
        &api.metadata
    }

    fn decode(api: &core::Node) -> Checked<Node> {
        let mut violations = Violations::default();
        let meta = CheckedMetadata::read(&api.metadata, &mut violations);
        let addresses = api.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in addresses.filter_map(|address| address.address.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let mut pod_cidrs: Vec<IpNet> = Vec::new();
        if let Some(spec) = &api.spec {
            for (i, cidr) in spec.pod_cidrs.iter().flatten().enumerate() {
                match cidr.parse() {
                    Ok(cidr) => pod_cidrs.push(cidr),
                    Err(_) => {
                        violations.add(&Path::parse("spec.podCIDRs").index(i), format!("invalid CIDR {}", quoted(cidr)))
                    }
                }
            }
            if pod_cidrs.is_empty()
                && let Some(cidr) = spec.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty())
            {
                match cidr.parse() {
                    Ok(cidr) => pod_cidrs.push(cidr),
                    Err(_) => violations.add(&Path::parse("spec.podCIDR"), format!("invalid CIDR {}", quoted(cidr))),
                }
            }
        }
        annotations::add(api.metadata.annotations.as_ref(), &mut ips, &mut pod_cidrs);
        violations.check(Node { name: meta.name, labels: meta.labels, ips: ips.into(), pod_cidrs: pod_cidrs.into() })
    }

    fn key(&self) -> Key {
        Key { kind: Kind::Node, namespace: None, name: self.name.clone() }
    }

    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a Node> {
        index.nodes.get(&key.name).map(|node| &**node)
    }

    fn keys<'a>(index: &'a Index, _: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        Box::new(index.nodes.values().map(|node| Resource::key(&**node)))
    }

    fn insert(self, index: &mut Index) {
        Node::remove(index, &Resource::key(&self));
        for ip in &self.ips {
            index.nodes_by_ip.insert(*ip, self.name.clone());
        }
        for cidr in &self.pod_cidrs {
            index.pod_network.declare(*cidr);
        }
        index.nodes.insert(self.name.clone(), Arc::new(self));
    }

    fn remove(index: &mut Index, key: &Key) {
        let Some(node) = index.nodes.remove(&key.name) else { return };
        for ip in &node.ips {
            if index.nodes_by_ip.get(ip).is_some_and(|owner| *owner == key.name) {
                index.nodes_by_ip.remove(ip);
            }
        }
        for cidr in &node.pod_cidrs {
            index.pod_network.withdraw(*cidr);
        }
    }
}
