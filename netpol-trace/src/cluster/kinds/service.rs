//! Services: the addresses and ports at which they answer.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::change::{Key, Scope};
use super::super::decode::meta::{self, CheckedMetadata, Port};
use super::super::decode::{Checked, Violations};
use super::super::index::Index;
use super::super::resource::{KindInfo, Resource};
use super::super::yaml::Path;
use super::Kind;
use crate::model::cluster::{Service, ServicePort, TargetPort};

pub(in crate::cluster) const INFO: KindInfo =
    KindInfo { name: "Service", plural: "services", keeps_lines: true, ..KindInfo::DEFAULT };

impl Resource for Service {
    type Api = core::Service;
    type Wire = core::Service;

    fn metadata(api: &core::Service) -> &ObjectMeta {
        &api.metadata
    }

    fn decode(api: &core::Service) -> Checked<Service> {
        let mut v = Violations::default();
        let meta = CheckedMetadata::read(&api.metadata, &mut v);
        let spec = api.spec.clone().unwrap_or_default();
        let path = Path::default().field("spec");
        let balancers =
            api.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|lb| lb.ingress.iter().flatten());
        let written = spec
            .cluster_ip
            .iter()
            .chain(spec.cluster_ips.iter().flatten())
            .chain(spec.external_ips.iter().flatten())
            .chain(&spec.load_balancer_ip)
            .chain(balancers.filter_map(|ingress| ingress.ip.as_ref()));
        let mut ips: Vec<IpAddr> = Vec::new();
        // "None" marks a headless service.
        for ip in written.filter_map(|ip| ip.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let mut ports = Vec::new();
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            let path = path.field("ports").index(i);
            let number = meta::port_number(port.port, &path.field("port"), &mut v);
            // 0 stands for "not given" in dumps of old clients.
            let target = match &port.target_port {
                None => TargetPort::Number(number),
                Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(0)) => TargetPort::Number(number),
                Some(target) => match meta::port(target, &path.field("targetPort"), &mut v) {
                    Port::Number(number) => TargetPort::Number(number),
                    Port::Name(name) => TargetPort::Name(name),
                },
            };
            ports.push(ServicePort {
                name: port.name.as_deref().filter(|name| !name.is_empty() && name.len() <= 63).map(Into::into),
                protocol: meta::protocol(port.protocol.as_deref(), &path, &mut v),
                port: number,
                target,
                node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
            });
        }
        let external_name = spec.type_.as_deref() == Some("ExternalName");
        let selector = spec.selector.filter(|selector| !selector.is_empty() && !external_name);
        let selector = selector.map(|selector| meta::labels(Some(&selector), &path.field("selector"), &mut v));
        let service = Service {
            namespace: meta.namespace,
            name: meta.name,
            uid: meta.uid,
            ips: ips.into(),
            ports: ports.into(),
            selector,
        };
        v.check(service)
    }

    fn key(&self) -> Key {
        Key { kind: Kind::Service, namespace: Some(self.namespace.clone()), name: self.name.clone() }
    }

    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a Service> {
        index.namespaces.get(key.namespace.as_ref()?)?.services.get(&key.name).map(|service| &**service)
    }

    fn keys<'a>(index: &'a Index, _: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        let services = index.namespaces.values().flat_map(|entry| entry.services.values());
        Box::new(services.map(|service| Resource::key(&**service)))
    }

    fn insert(self, index: &mut Index) {
        Service::remove(index, &Resource::key(&self));
        for ip in &self.ips {
            let key = (self.namespace.clone(), self.name.clone());
            index.services_by_ip.entry(*ip).or_default().push(key);
        }
        let entry = index.namespaces.entry(self.namespace.clone()).or_default();
        entry.services.insert(self.name.clone(), Arc::new(self));
    }

    fn remove(index: &mut Index, key: &Key) {
        let Some(namespace) = &key.namespace else { return };
        let Some(service) = index.namespaces.get_mut(namespace).and_then(|n| n.services.remove(&key.name)) else {
            return;
        };
        for ip in &service.ips {
            if let Some(keys) = index.services_by_ip.get_mut(ip) {
                keys.retain(|(of_namespace, name)| !(of_namespace == namespace && *name == key.name));
                if keys.is_empty() {
                    index.services_by_ip.remove(ip);
                }
            }
        }
        index.remove_if_empty(namespace);
    }
}
