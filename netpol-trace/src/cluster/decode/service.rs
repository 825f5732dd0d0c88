//! Services and their endpoint slices.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::super::yaml::Path;
use super::meta::{self, Meta, Port};
use super::{Checked, Violations};
use crate::model::cluster::{Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, TargetPort};

/// The label by which an endpoint slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub fn service(service: &core::Service) -> Checked<Service> {
    let mut v = Violations::default();
    let meta = Meta::read(&service.metadata, &mut v);
    let spec = service.spec.clone().unwrap_or_default();
    let path = Path::default().field("spec");
    let balancers =
        service.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|lb| lb.ingress.iter().flatten());
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

pub fn endpoint_slice(slice: &discovery::EndpointSlice) -> Checked<EndpointSlice> {
    let mut v = Violations::default();
    let meta = Meta::read(&slice.metadata, &mut v);
    let endpoints = slice.endpoints.iter().flatten().map(|endpoint| Endpoint {
        ips: endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
        // Not known counts as ready (the API's own reading).
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
    for (i, port) in slice.ports.iter().flatten().enumerate() {
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
