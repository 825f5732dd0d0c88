//! Pods: their labels, addresses and ports, with the history of each.

pub(in crate::cluster) mod wire;

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::api::Need;
use super::super::change::{Key, Scope};
use super::super::decode::meta::{self, CheckedMetadata};
use super::super::decode::{Checked, Violations};
use super::super::index::{Claim, Index, PodEntry, PodKey};
use super::super::resource::{KindInfo, Resource, Watched};
use super::super::yaml::Path;
use super::Kind;
use crate::model::Str;
use crate::model::cluster::{ContainerPort, Labels, Pod, PodOwner, PodPhase};

pub(in crate::cluster) const INFO: KindInfo = KindInfo {
    name: "Pod",
    plural: "pods",
    verbs: &["get", "list", "watch"],
    watched: Watched::ByPeers,
    need: Need::ForVerdicts,
    ..KindInfo::DEFAULT
};

/// A pod has a handful of ports. An object with more than this is refused.
const MAX_PORTS: usize = 10_000;

impl Resource for Pod {
    type Api = core::Pod;
    type Wire = wire::PodWire;

    fn metadata(api: &core::Pod) -> &ObjectMeta {
        &api.metadata
    }

    fn decode(api: &core::Pod) -> Checked<Pod> {
        let mut v = Violations::default();
        let meta = CheckedMetadata::read(&api.metadata, &mut v);
        let status = api.status.as_ref();
        let mut ips: Vec<IpAddr> = Vec::new();
        let primary = status.and_then(|s| s.pod_ip.as_deref());
        let all = status.into_iter().flat_map(|s| s.pod_ips.iter().flatten()).map(|ip| ip.ip.as_str());
        for ip in primary.into_iter().chain(all).filter_map(|ip| ip.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let spec = Path::default().field("spec");
        let pod = Pod {
            owner: owner(&api.metadata, &meta.labels),
            namespace: meta.namespace,
            name: meta.name,
            uid: meta.uid,
            labels: meta.labels,
            ips: ips.into(),
            node: api
                .spec
                .as_ref()
                .and_then(|s| s.node_name.as_deref())
                .filter(|node| !node.is_empty())
                .map(Into::into),
            host_network: api.spec.as_ref().is_some_and(|s| s.host_network == Some(true)),
            phase: status.and_then(|s| s.phase.as_deref()).map_or(PodPhase::default(), phase),
            terminating: api.metadata.deletion_timestamp.is_some(),
            ports: api.spec.as_ref().map(|s| ports(s, &spec, &mut v)).unwrap_or_default(),
            created: api.metadata.creation_timestamp.as_ref().map(|time| time.0),
            template: false,
        };
        v.check(pod)
    }

    fn key(&self) -> Key {
        Key { kind: Kind::Pod, namespace: Some(self.namespace.clone()), name: self.unique_name() }
    }

    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a Pod> {
        index.namespaces.get(key.namespace.as_ref()?)?.pods.get(&key.name).map(|entry| &*entry.pod)
    }

    fn keys<'a>(index: &'a Index, scope: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        let pods = index.namespaces.values().flat_map(|entry| entry.pods.values()).map(|entry| &*entry.pod);
        let covered = |pod: &&Pod| scope.node.is_none() || pod.node == scope.node;
        Box::new(pods.filter(covered).map(Resource::key))
    }

    /// The pod counts as the owner of its addresses since ever.
    fn insert(self, index: &mut Index) {
        insert_from(self, index, Timestamp::MIN);
    }

    fn remove(index: &mut Index, key: &Key) {
        let Some(namespace) = &key.namespace else { return };
        let Some(entry) = index.namespaces.get_mut(namespace).and_then(|n| n.pods.remove(&key.name)) else { return };
        for ip in &entry.pod.ips {
            if let Some(keys) = index.pods_by_ip.get_mut(ip) {
                let claims = keys.len();
                keys.retain(|claim| !(claim.namespace == *namespace && claim.name == key.name));
                (keys.len()..claims).for_each(|_| index.pod_network.unlearn(*ip));
                if keys.is_empty() {
                    index.pods_by_ip.remove(ip);
                }
            }
        }
        index.remove_if_empty(namespace);
    }

    fn put(self, index: &mut Index, at: Timestamp, listed: bool) {
        let (namespace, key) = (self.namespace.clone(), self.unique_name());
        let before = index.namespaces.get(&namespace).and_then(|n| n.pods.get(&key)).map(|entry| entry.pod.clone());
        if before.as_deref() == Some(&self) {
            return;
        }
        let held = before.as_deref().map(|pod| claims_of(index, pod)).unwrap_or_default();
        let before = before.filter(|before| {
            let same = before.is_same(&self);
            if !same {
                end_claims(index, before, &held, at);
            }
            same
        });
        let changed = before.as_ref().filter(|before| {
            (&before.labels, &before.ports, before.host_network, &before.node)
                != (&self.labels, &self.ports, self.host_network, &self.node)
        });
        if let Some(before) = changed {
            index.history.undo_pod(at, (*before).clone());
        }
        let from = if listed { at } else { Timestamp::MIN };
        let claims: Vec<IpAddr> = if self.owns_addresses() { self.ips.to_vec() } else { Vec::new() };
        insert_from(self, index, from);
        index.bump_version();
        if listed && claims.iter().any(|ip| !held.iter().any(|(held, _)| held == ip)) {
            index.history.touch(at);
        }
        let Some(before) = before else { return };
        for (ip, from) in &held {
            let keys = index.pods_by_ip.get_mut(ip).into_iter().flatten();
            if let Some(kept) = keys.into_iter().find(|k| k.namespace == namespace && k.name == key) {
                kept.from = *from;
            }
        }
        let ended: Vec<_> = held.into_iter().filter(|(ip, _)| !claims.contains(ip)).collect();
        end_claims(index, &before, &ended, at);
    }

    fn take(index: &mut Index, key: &Key, at: Timestamp) {
        let entry = key.namespace.as_ref().and_then(|namespace| index.namespaces.get(namespace)?.pods.get(&key.name));
        let Some(pod) = entry.map(|entry| entry.pod.clone()) else { return };
        let held = claims_of(index, &pod);
        index.remove(key);
        end_claims(index, &pod, &held, at);
    }
}

impl Pod {
    /// The name by which the index holds the pod in its namespace: of a template `kind/name`, which no pod can have.
    pub fn unique_name(&self) -> Str {
        match &self.owner {
            Some(owner) if self.template => format!("{}/{}", owner.kind, self.name).into(),
            _ => self.name.clone(),
        }
    }

    /// Whether `other` is a version of this pod, not another pod of its name.
    pub fn is_same(&self, other: &Pod) -> bool {
        (&self.uid, &self.name, &self.namespace) == (&other.uid, &other.name, &other.namespace)
            && self.template == other.template
    }
}

/// Adds the pod as the owner of its addresses since `from`.
fn insert_from(mut pod: Pod, index: &mut Index, from: Timestamp) {
    let key = Resource::key(&pod);
    Pod::remove(index, &key);
    let strings = &mut index.strings;
    pod.labels = pod.labels.iter().map(|(k, v)| (strings.share(k), strings.share(v))).collect();
    pod.namespace = strings.share(&pod.namespace);
    pod.node = pod.node.map(|node| strings.share(&node));
    if let Some(owner) = &mut pod.owner {
        owner.kind = strings.share(&owner.kind);
        owner.name = strings.share(&owner.name);
    }
    for name in pod.ports.iter_mut().filter_map(|port| port.name.as_mut()) {
        *name = strings.share(name);
    }
    if pod.owns_addresses() {
        for ip in &pod.ips {
            let key = PodKey { namespace: pod.namespace.clone(), name: pod.name.clone(), from };
            // Nearly always one pod: room for more would be a tenth of the index.
            index.pods_by_ip.entry(*ip).or_insert_with(|| Vec::with_capacity(1)).push(key);
            index.pod_network.learn(*ip);
        }
    }
    let namespace = index.namespaces.entry(pod.namespace.clone()).or_default();
    let mut entry = PodEntry::new(Arc::new(pod));
    for policy in namespace.policies.values() {
        entry.isolate(policy);
    }
    namespace.pods.insert(key.name, entry);
}

/// The addresses that a pod has in the index, and since when.
fn claims_of(index: &Index, pod: &Pod) -> Vec<(IpAddr, Timestamp)> {
    let own = |key: &&PodKey| key.namespace == pod.namespace && key.name == pod.name && !pod.template;
    let since = |ip: &IpAddr| Some((*ip, index.pods_by_ip.get(ip)?.iter().find(own)?.from));
    pod.ips.iter().filter_map(since).collect()
}

fn end_claims(index: &mut Index, pod: &Arc<Pod>, claims: &[(IpAddr, Timestamp)], until: Timestamp) {
    for (ip, from) in claims {
        index.history.claim(*ip, Claim { pod: pod.clone(), from: *from, until });
    }
}

fn phase(name: &str) -> PodPhase {
    match name {
        "Pending" => PodPhase::Pending,
        "Running" | "" => PodPhase::Running,
        "Succeeded" => PodPhase::Succeeded,
        "Failed" => PodPhase::Failed,
        _ => PodPhase::Unknown,
    }
}

/// The workload behind a pod, without a GET of its ReplicaSet: a Deployment names its ReplicaSets
/// `<deployment>-<pod-template-hash>`. A Job's name does not show its CronJob, so the owner is the Job.
fn owner(meta: &ObjectMeta, labels: &Labels) -> Option<PodOwner> {
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let deployment = labels
        .get("pod-template-hash")
        .and_then(|hash| owner.name.strip_suffix(&**hash)?.strip_suffix('-'))
        .filter(|name| owner.kind == "ReplicaSet" && !name.is_empty());
    Some(match deployment {
        Some(name) => PodOwner { kind: "Deployment".into(), name: name.into() },
        None => PodOwner { kind: owner.kind.as_str().into(), name: owner.name.as_str().into() },
    })
}

pub(super) fn ports(spec: &core::PodSpec, path: &Path, v: &mut Violations) -> Box<[ContainerPort]> {
    let sidecar = |c: &core::Container| c.restart_policy.as_deref() == Some("Always");
    let inits = spec.init_containers.iter().flatten().enumerate();
    let inits = inits.filter(|(_, c)| sidecar(c)).map(|(i, c)| ("initContainers", i, c, true));
    let containers = spec.containers.iter().enumerate().map(|(i, c)| ("containers", i, c, false));
    let mut ports = Vec::new();
    for (field, i, container, sidecar) in containers.chain(inits) {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            if ports.len() >= MAX_PORTS {
                v.add(&path.field(field), format!("more than {MAX_PORTS} ports"));
                return Box::default();
            }
            let path = path.field(field).index(i).field("ports").index(j);
            ports.push(ContainerPort {
                name: port
                    .name
                    .as_deref()
                    .filter(|n| !n.is_empty())
                    .map(|n| meta::port_name(n, &path.field("name"), v)),
                port: meta::port_number(port.container_port, &path.field("containerPort"), v),
                protocol: meta::protocol(port.protocol.as_deref(), &path, v),
                sidecar,
            });
        }
    }
    ports.into()
}
