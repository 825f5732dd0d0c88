//! Pods, and the pod templates of workloads.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::yaml::Path;
use super::meta::{self, Meta};
use super::{Checked, Violations};
use crate::model::Str;
use crate::model::cluster::{ContainerPort, Labels, Owner, Pod, PodPhase};

/// A pod has a handful; more is no pod.
const MAX_PORTS: usize = 10_000;

pub fn pod(pod: &core::Pod) -> Checked<Pod> {
    let mut v = Violations::default();
    let meta = Meta::read(&pod.metadata, &mut v);
    let status = pod.status.as_ref();
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
        owner: owner(&pod.metadata, &meta.labels),
        namespace: meta.namespace,
        name: meta.name,
        uid: meta.uid,
        labels: meta.labels,
        ips: ips.into(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|node| !node.is_empty()).map(Into::into),
        host_network: pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true)),
        phase: status.and_then(|s| s.phase.as_deref()).map_or(PodPhase::default(), phase),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ports: pod.spec.as_ref().map(|s| ports(s, &spec, &mut v)).unwrap_or_default(),
        created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        template: false,
    };
    v.check(pod)
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

/// The workload behind a pod, without asking the API for its ReplicaSet: a Deployment names its ReplicaSets
/// `<deployment>-<pod-template-hash>`. A Job's CronJob can't be told so: the Job is named.
fn owner(meta: &ObjectMeta, labels: &Labels) -> Option<Owner> {
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let deployment = labels
        .get("pod-template-hash")
        .and_then(|hash| owner.name.strip_suffix(&**hash)?.strip_suffix('-'))
        .filter(|name| owner.kind == "ReplicaSet" && !name.is_empty());
    Some(match deployment {
        Some(name) => Owner { kind: "Deployment".into(), name: name.into() },
        None => Owner { kind: owner.kind.as_str().into(), name: owner.name.as_str().into() },
    })
}

fn ports(spec: &core::PodSpec, path: &Path, v: &mut Violations) -> Box<[ContainerPort]> {
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

/// What makes pods from a template.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    pub kind: &'a str,
    pub meta: &'a ObjectMeta,
    pub template: &'a core::PodTemplateSpec,
    /// Where the template is in the object.
    pub path: &'a Path,
}

/// A workload's pod template, as a pod of the workload's name that has no address.
pub fn template(workload: Workload<'_>) -> Checked<Pod> {
    let mut v = Violations::default();
    let meta = Meta::read(workload.meta, &mut v);
    let labels_path = workload.path.field("metadata").field("labels");
    let template_meta = workload.template.metadata.as_ref();
    let spec = workload.template.spec.as_ref();
    let kind: Str = workload.kind.into();
    let pod = Pod {
        owner: Some(Owner { kind, name: meta.name.clone() }),
        namespace: meta.namespace,
        name: meta.name,
        uid: None,
        labels: meta::labels(template_meta.and_then(|m| m.labels.as_ref()), &labels_path, &mut v),
        ips: Box::default(),
        node: None,
        host_network: spec.is_some_and(|s| s.host_network == Some(true)),
        phase: PodPhase::Running,
        terminating: false,
        ports: spec.map(|s| ports(s, &workload.path.field("spec"), &mut v)).unwrap_or_default(),
        created: workload.meta.creation_timestamp.as_ref().map(|time| time.0),
        template: true,
    };
    v.check(pod)
}
