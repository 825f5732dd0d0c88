//! What comes over the wire, down to the fields that are used: an item is decoded into our own model while it is read,
//! so that no list of whole pods is ever in memory.

use std::marker::PhantomData;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1 as core;
pub use k8s_openapi::api::core::v1::Service;
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};

use super::super::decode::{self, Checked};
use crate::model::Str;
use crate::model::cluster::{Object, OtherPolicy};

/// One object of a list or a watch.
#[derive(Debug)]
pub struct Item<R> {
    pub namespace: Option<Str>,
    pub name: Str,
    pub version: String,
    pub object: Checked<Object>,
    raw: PhantomData<fn() -> R>,
}

// By hand: what is cloned is never an `R`.
impl<R> Clone for Item<R> {
    fn clone(&self) -> Item<R> {
        let Item { namespace, name, version, object, raw } = self;
        Item {
            namespace: namespace.clone(),
            name: name.clone(),
            version: version.clone(),
            object: object.clone(),
            raw: *raw,
        }
    }
}

/// A type of the API, or a part of one, that becomes an object of ours.
pub trait Raw: DeserializeOwned + Send + 'static {
    fn meta(&self) -> &ObjectMeta;
    fn object(&self) -> Checked<Object>;
}

impl<'de, R: Raw> Deserialize<'de> for Item<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Item<R>, D::Error> {
        let raw = R::deserialize(deserializer)?;
        let meta = raw.meta();
        Ok(Item {
            namespace: meta.namespace.as_deref().map(Into::into),
            name: meta.name.as_deref().unwrap_or_default().into(),
            version: meta.resource_version.clone().unwrap_or_default(),
            object: raw.object(),
            raw: PhantomData,
        })
    }
}

macro_rules! raw {
    ($($type:ty => $decode:path, $object:path;)*) => {$(
        impl Raw for $type {
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn object(&self) -> Checked<Object> {
                $decode(self).map($object)
            }
        }
    )*};
}

raw! {
    NetworkPolicy => decode::policy, Object::Policy;
    Service => decode::service, Object::Service;
    EndpointSlice => decode::endpoint_slice, Object::EndpointSlice;
}

/// What a list of many, large objects is cut down to before anything is kept of it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<std::collections::BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> ObjectMeta {
        ObjectMeta {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            resource_version: meta.resource_version,
            labels: meta.labels,
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            owner_references: meta.owner_references,
            ..ObjectMeta::default()
        }
    }
}

/// A pod without all that says how its containers run.
#[derive(Debug)]
pub struct Pod(core::Pod);

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodParts {
    metadata: Meta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<core::ContainerPort>>,
    restart_policy: Option<String>,
}

impl From<Container> for core::Container {
    fn from(Container { ports, restart_policy }: Container) -> core::Container {
        core::Container { ports, restart_policy, ..core::Container::default() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
    start_time: Option<Time>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<Time>,
}

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pod, D::Error> {
        let PodParts { metadata, spec, status } = PodParts::deserialize(deserializer)?;
        let containers = |list: Vec<Container>| list.into_iter().map(Into::into).collect();
        let spec = core::PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: containers(spec.containers),
            init_containers: spec.init_containers.map(containers),
            ..core::PodSpec::default()
        };
        let began = status.began();
        let PodStatus { phase, pod_ip, pod_ips, .. } = status;
        let status = core::PodStatus { phase, pod_ip, pod_ips, start_time: began, ..core::PodStatus::default() };
        Ok(Pod(core::Pod { metadata: metadata.into(), spec: Some(spec), status: Some(status) }))
    }
}

impl PodStatus {
    /// Before this the pod had no address: its node took it up and then made its sandbox, with the network. The second is
    /// told by whole seconds and some time after.
    fn began(&self) -> Option<Time> {
        const TOLD_AFTER: SignedDuration = SignedDuration::from_secs(2);
        let network = |c: &&Condition| c.r#type == "PodReadyToStartContainers" && c.status == "True";
        let network = self.conditions.iter().flatten().find(network).and_then(|c| c.last_transition_time.as_ref());
        let network = network.map(|time| time.0 - TOLD_AFTER);
        self.start_time.as_ref().map(|time| time.0).into_iter().chain(network).max().map(Time)
    }
}

/// A pod that was asked for by its address: it counts as begun when it may have got one, not when it was made. Another pod
/// had the address before.
#[derive(Debug)]
pub struct Peer(Pod);

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Peer, D::Error> {
        let Pod(mut pod) = Pod::deserialize(deserializer)?;
        let began = pod.status.as_ref().and_then(|status| status.start_time.clone());
        let created = pod.metadata.creation_timestamp.take();
        pod.metadata.creation_timestamp = [created, began].into_iter().flatten().max();
        Ok(Peer(Pod(pod)))
    }
}

impl Raw for Peer {
    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn object(&self) -> Checked<Object> {
        self.0.object()
    }
}

impl Raw for Pod {
    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn object(&self) -> Checked<Object> {
        decode::pod(&self.0).map(Object::Pod)
    }
}

/// A node without its images, conditions and capacity.
#[derive(Debug)]
pub struct Node(core::Node);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeParts {
    metadata: Meta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let NodeParts { metadata, spec, status } = NodeParts::deserialize(deserializer)?;
        let NodeSpec { pod_cidr, pod_cidrs } = spec;
        let spec = core::NodeSpec { pod_cidr, pod_cidrs, ..core::NodeSpec::default() };
        let status = core::NodeStatus { addresses: status.addresses, ..core::NodeStatus::default() };
        Ok(Node(core::Node { metadata: metadata.into(), spec: Some(spec), status: Some(status) }))
    }
}

impl Raw for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn object(&self) -> Checked<Object> {
        decode::node(&self.0).map(Object::Node)
    }
}

/// A namespace: only its labels count.
#[derive(Debug)]
pub struct Namespace(core::Namespace);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamespaceParts {
    metadata: Meta,
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Namespace, D::Error> {
        let parts = NamespaceParts::deserialize(deserializer)?;
        Ok(Namespace(core::Namespace { metadata: parts.metadata.into(), ..core::Namespace::default() }))
    }
}

impl Raw for Namespace {
    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn object(&self) -> Checked<Object> {
        decode::namespace(&self.0).map(Object::Namespace)
    }
}

/// A name, of a policy that is not evaluated; its group and kind are those of the watch.
#[derive(Debug, Deserialize)]
pub struct Named {
    metadata: MetaOnly,
}

#[derive(Debug)]
struct MetaOnly(ObjectMeta);

impl<'de> Deserialize<'de> for MetaOnly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MetaOnly, D::Error> {
        Meta::deserialize(deserializer).map(|meta| MetaOnly(meta.into()))
    }
}

impl Raw for Named {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata.0
    }

    fn object(&self) -> Checked<Object> {
        let ObjectMeta { namespace, name, .. } = &self.metadata.0;
        Ok(Object::OtherPolicy(OtherPolicy {
            group: "".into(),
            kind: "".into(),
            namespace: namespace.as_deref().map(Into::into),
            name: name.as_deref().unwrap_or_default().into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"metadata":{"name":"a","namespace":"x","resourceVersion":"7","creationTimestamp":"2026-11-21T12:00:00Z",
        "labels":null,"managedFields":[{"manager":"kubelet","fieldsV1":{"f:status":{}}}],"annotations":{"large":"text"}},
      "spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","env":[{"name":"A","value":"b"}],
        "ports":[{"containerPort":80,"name":"http"}]}],"unknown":{"field":[1,2]}},
      "status":{"phase":"Running","podIP":"10.1.0.1","podIPs":[{"ip":"10.1.0.1"},{"ip":"fd00::1"}],"startTime":"2026-11-21T12:00:03Z",
        "conditions":[{"type":"PodReadyToStartContainers","status":"True","lastTransitionTime":"2026-11-21T12:00:09Z"}]}}"#;

    fn pod<R: Raw>() -> crate::model::cluster::Pod {
        let item: Item<R> = serde_json::from_str(POD).unwrap();
        assert_eq!((item.namespace.as_deref(), &*item.name, &*item.version), (Some("x"), "a", "7"));
        let Ok(Object::Pod(pod)) = item.object else { panic!("no pod: {:?}", item.object) };
        pod
    }

    #[test]
    fn a_pod_is_cut_down_to_what_is_used() {
        let pod = pod::<Pod>();
        assert_eq!((pod.ips.len(), pod.node.as_deref(), pod.ports[0].port), (2, Some("n1"), 80));
        assert_eq!(pod.created.map(|time| time.to_string()).as_deref(), Some("2026-11-21T12:00:00Z"));
    }

    #[test]
    fn a_pod_that_was_asked_for_began_with_its_network() {
        let created = pod::<Peer>().created.map(|time| time.to_string());
        assert_eq!(created.as_deref(), Some("2026-11-21T12:00:07Z"));
    }

    #[test]
    fn an_object_with_next_to_nothing_is_one() {
        let item: Item<Pod> = serde_json::from_str(r#"{"metadata":{"name":"a","namespace":"x"}}"#).unwrap();
        assert!(item.object.is_ok(), "{:?}", item.object);
        let item: Item<Node> = serde_json::from_str(r#"{"metadata":{"name":"a"}}"#).unwrap();
        assert!(item.object.is_ok(), "{:?}", item.object);
    }
}
