//! Workloads in files and in a cluster that is read once: the index holds their pod templates as pods without address.

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::decode::meta::{self, CheckedMetadata};
use super::super::decode::{Checked, ObjectReader, Violations};
use super::super::resource::KindInfo;
use super::super::yaml::Path;
use super::pod::ports;
use crate::model::Str;
use crate::model::cluster::{Pod, PodOwner, PodPhase};

/// A kind whose objects hold a pod template.
pub(in crate::cluster) struct WorkloadKind {
    pub info: KindInfo,
    /// Read from a cluster too. A ReplicaSet there is nearly always a Deployment's, which has the same template.
    pub listed: bool,
    pub read: fn(&mut ObjectReader<'_, '_>),
}

const TEMPLATE: &str = "spec.template";

pub(in crate::cluster) static WORKLOADS: [WorkloadKind; 6] = [
    WorkloadKind {
        info: KindInfo { api_version: "apps/v1", name: "Deployment", plural: "deployments", ..KindInfo::DEFAULT },
        listed: true,
        read: |reader| reader.template(TEMPLATE, |o: &apps::Deployment| (&o.metadata, Some(&o.spec.template))),
    },
    WorkloadKind {
        info: KindInfo { api_version: "apps/v1", name: "StatefulSet", plural: "statefulsets", ..KindInfo::DEFAULT },
        listed: true,
        read: |reader| reader.template(TEMPLATE, |o: &apps::StatefulSet| (&o.metadata, Some(&o.spec.template))),
    },
    WorkloadKind {
        info: KindInfo { api_version: "apps/v1", name: "DaemonSet", plural: "daemonsets", ..KindInfo::DEFAULT },
        listed: true,
        read: |reader| reader.template(TEMPLATE, |o: &apps::DaemonSet| (&o.metadata, Some(&o.spec.template))),
    },
    WorkloadKind {
        info: KindInfo { api_version: "apps/v1", name: "ReplicaSet", plural: "replicasets", ..KindInfo::DEFAULT },
        listed: false,
        read: |reader| reader.template(TEMPLATE, |o: &apps::ReplicaSet| (&o.metadata, o.spec.template.as_ref())),
    },
    WorkloadKind {
        info: KindInfo { api_version: "batch/v1", name: "Job", plural: "jobs", ..KindInfo::DEFAULT },
        listed: true,
        read: |reader| {
            reader.template(TEMPLATE, |o: &batch::Job| (&o.metadata, o.spec.as_ref().map(|spec| &spec.template)));
        },
    },
    WorkloadKind {
        info: KindInfo { api_version: "batch/v1", name: "CronJob", plural: "cronjobs", ..KindInfo::DEFAULT },
        listed: true,
        read: |reader| {
            reader.template("spec.jobTemplate.spec.template", |o: &batch::CronJob| {
                (&o.metadata, o.spec.job_template.spec.as_ref().map(|spec| &spec.template))
            });
        },
    },
];

/// The kind of the workload whose template `pod` is.
pub(super) fn kind_of(pod: &Pod) -> &'static str {
    let owner = pod.owner.as_ref().map(|owner| &*owner.kind);
    WORKLOADS.iter().map(|workload| workload.info.name).find(|name| Some(*name) == owner).unwrap_or("Job")
}

/// A workload's pod template, as a pod of the workload's name that has no address. `path` is the template's field.
pub(in crate::cluster) fn decode(
    kind: &str,
    metadata: &ObjectMeta,
    template: &core::PodTemplateSpec,
    path: &Path,
) -> Checked<Pod> {
    let mut v = Violations::default();
    let meta = CheckedMetadata::read(metadata, &mut v);
    let labels_path = path.field("metadata").field("labels");
    let template_meta = template.metadata.as_ref();
    let spec = template.spec.as_ref();
    let kind: Str = kind.into();
    let pod = Pod {
        owner: Some(PodOwner { kind, name: meta.name.clone() }),
        namespace: meta.namespace,
        name: meta.name,
        uid: None,
        labels: meta::labels(template_meta.and_then(|m| m.labels.as_ref()), &labels_path, &mut v),
        ips: Box::default(),
        node: None,
        host_network: spec.is_some_and(|s| s.host_network == Some(true)),
        phase: PodPhase::Running,
        terminating: false,
        ports: spec.map(|s| ports(s, &path.field("spec"), &mut v)).unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0),
        template: true,
    };
    v.check(pod)
}
