//! Pods as lists and watches read them: without all that says how their containers run.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

use super::super::super::decode::wire;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::cluster) struct PodWire {
    #[serde(deserialize_with = "wire::metadata")]
    metadata: ObjectMeta,
    spec: PodSpecWire,
    status: PodStatusWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpecWire {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Vec<ContainerWire>,
    init_containers: Option<Vec<ContainerWire>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerWire {
    ports: Option<Vec<core::ContainerPort>>,
    restart_policy: Option<String>,
}

impl From<ContainerWire> for core::Container {
    fn from(ContainerWire { ports, restart_policy }: ContainerWire) -> core::Container {
        core::Container { ports, restart_policy, ..core::Container::default() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatusWire {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
    start_time: Option<Time>,
    conditions: Option<Vec<ConditionWire>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConditionWire {
    r#type: String,
    status: String,
    last_transition_time: Option<Time>,
}

impl From<PodWire> for core::Pod {
    fn from(PodWire { metadata, spec, status }: PodWire) -> core::Pod {
        let containers = |list: Vec<ContainerWire>| list.into_iter().map(Into::into).collect();
        let spec = core::PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: containers(spec.containers),
            init_containers: spec.init_containers.map(containers),
            ..core::PodSpec::default()
        };
        let PodStatusWire { phase, pod_ip, pod_ips, .. } = status;
        let status = core::PodStatus { phase, pod_ip, pod_ips, ..core::PodStatus::default() };
        core::Pod { metadata, spec: Some(spec), status: Some(status) }
    }
}

/// A pod that was looked up by its address. Its creation time is the earliest time at which it can have had the address,
/// because another pod had the address before.
#[derive(Debug, Deserialize)]
pub(in crate::cluster) struct LookedUpPodWire(PodWire);

impl From<LookedUpPodWire> for core::Pod {
    fn from(LookedUpPodWire(mut wire): LookedUpPodWire) -> core::Pod {
        let created = wire.metadata.creation_timestamp.take();
        wire.metadata.creation_timestamp = [created, wire.status.network_since()].into_iter().flatten().max();
        wire.into()
    }
}

impl PodStatusWire {
    /// A time before which the pod had no address: the kubelet accepts a pod (`startTime`), then makes its sandbox with the
    /// network. The kubelet reports the sandbox in whole seconds and late, so that time is moved back.
    fn network_since(&self) -> Option<Time> {
        const REPORTED_AFTER: SignedDuration = SignedDuration::from_secs(2);
        let network = |c: &&ConditionWire| c.r#type == "PodReadyToStartContainers" && c.status == "True";
        let network = self.conditions.iter().flatten().find(network).and_then(|c| c.last_transition_time.as_ref());
        let network = network.map(|time| time.0 - REPORTED_AFTER);
        self.start_time.as_ref().map(|time| time.0).into_iter().chain(network).max().map(Time)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::super::super::super::decode::wire::WireObject;
    use super::*;
    use crate::model::cluster::{Node, Pod};

    const POD: &str = r#"{"metadata":{"name":"a","namespace":"x","resourceVersion":"7","creationTimestamp":"2026-11-21T12:00:00Z",
        "labels":null,"managedFields":[{"manager":"kubelet","fieldsV1":{"f:status":{}}}],"annotations":{"large":"text"}},
      "spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","env":[{"name":"A","value":"b"}],
        "ports":[{"containerPort":80,"name":"http"}]}],"unknown":{"field":[1,2]}},
      "status":{"phase":"Running","podIP":"10.1.0.1","podIPs":[{"ip":"10.1.0.1"},{"ip":"fd00::1"}],"startTime":"2026-11-21T12:00:03Z",
        "conditions":[{"type":"PodReadyToStartContainers","status":"True","lastTransitionTime":"2026-11-21T12:00:09Z"}]}}"#;

    fn pod<W: DeserializeOwned + Into<core::Pod>>() -> Pod {
        let object: WireObject<Pod, W> = serde_json::from_str(POD).unwrap();
        assert_eq!((object.namespace.as_deref(), &*object.name, &*object.version), (Some("x"), "a", "7"));
        object.decoded.expect("a pod")
    }

    #[test]
    fn a_pod_is_cut_down_to_what_is_used() {
        let pod = pod::<PodWire>();
        assert_eq!((pod.ips.len(), pod.node.as_deref(), pod.ports[0].port), (2, Some("n1"), 80));
        assert_eq!(pod.created.map(|time| time.to_string()).as_deref(), Some("2026-11-21T12:00:00Z"));
    }

    #[test]
    fn a_pod_that_was_looked_up_began_with_its_network() {
        let created = pod::<LookedUpPodWire>().created.map(|time| time.to_string());
        assert_eq!(created.as_deref(), Some("2026-11-21T12:00:07Z"));
    }

    #[test]
    fn an_object_with_a_name_alone_is_decoded() {
        let pod: WireObject<Pod> = serde_json::from_str(r#"{"metadata":{"name":"a","namespace":"x"}}"#).unwrap();
        assert!(pod.decoded.is_ok(), "{:?}", pod.decoded);
        let node: WireObject<Node> = serde_json::from_str(r#"{"metadata":{"name":"a"}}"#).unwrap();
        assert!(node.decoded.is_ok(), "{:?}", node.decoded);
    }
}
