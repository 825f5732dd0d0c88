//! SliceEndpoint slices: the addresses behind a service.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::change::{Key, Scope};
use super::super::decode::meta::{self, CheckedMetadata};
use super::super::decode::{Checked, Violations};
use super::super::index::Index;
use super::super::resource::{KindInfo, Resource};
use super::super::yaml::Path;
use super::Kind;
use crate::model::cluster::{EndpointPort, EndpointSlice, SliceEndpoint};

pub(in crate::cluster) const INFO: KindInfo = KindInfo {
    api_version: "discovery.k8s.io/v1",
    name: "EndpointSlice",
    plural: "endpointslices",
    ..KindInfo::DEFAULT
};

/// The label by which an endpoint slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Resource for EndpointSlice {
    type Api = discovery::EndpointSlice;
    type Wire = discovery::EndpointSlice;

    fn metadata(api: &discovery::EndpointSlice) -> &ObjectMeta {
        &api.metadata
    }

    fn decode(api: &discovery::EndpointSlice) -> Checked<EndpointSlice> {
        let mut v = Violations::default();
        let meta = CheckedMetadata::read(&api.metadata, &mut v);
        let endpoints = api.endpoints.iter().flatten().map(|endpoint| SliceEndpoint {
            ips: endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
            // The API says that an absent condition counts as ready.
            ready: endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
            node: endpoint.node_name.as_deref().map(Into::into),
            pod: endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind.as_deref() == Some("Pod"))
                .and_then(|target| target.name.as_deref())
                .map(Into::into),
        });
        let endpoints = endpoints.collect();
        let mut ports = Vec::new();
        for (i, port) in api.ports.iter().flatten().enumerate() {
            let path = Path::default().field("ports").index(i);
            ports.push(EndpointPort {
                name: port.name.as_deref().filter(|name| !name.is_empty() && name.len() <= 63).map(Into::into),
                protocol: meta::protocol(port.protocol.as_deref(), &path, &mut v),
                port: port.port.map(|number| meta::port_number(number, &path.field("port"), &mut v)),
            });
        }
        let service = meta.labels.get(SERVICE_NAME).cloned();
        v.check(EndpointSlice { namespace: meta.namespace, name: meta.name, service, endpoints, ports: ports.into() })
    }

    fn key(&self) -> Key {
        Key { kind: Kind::EndpointSlice, namespace: Some(self.namespace.clone()), name: self.name.clone() }
    }

    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a EndpointSlice> {
        index.namespaces.get(key.namespace.as_ref()?)?.slices.get(&key.name).map(|slice| &**slice)
    }

    fn keys<'a>(index: &'a Index, _: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        Box::new(index.namespaces.values().flat_map(|entry| entry.slices.values()).map(|slice| Resource::key(&**slice)))
    }

    fn insert(self, index: &mut Index) {
        let entry = index.namespaces.entry(self.namespace.clone()).or_default();
        entry.slices.insert(self.name.clone(), Arc::new(self));
    }

    fn remove(index: &mut Index, key: &Key) {
        let Some(namespace) = &key.namespace else { return };
        if let Some(entry) = index.namespaces.get_mut(namespace) {
            entry.slices.remove(&key.name);
        }
        index.remove_if_empty(namespace);
    }
}
