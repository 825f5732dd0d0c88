//! Services to the pods behind them, and back.

use std::net::IpAddr;
use std::sync::Arc;

use super::{AddressOwner, Index, NamespaceEntry, PodView};
use crate::model::cluster::{EndpointSlice, Pod, Protocol, Service, ServicePort, TargetPort};

/// One address and port behind a port of a service.
#[derive(Debug, Clone, Copy)]
pub struct ServiceBackend<'a> {
    /// `None` for a pod or template without a known address.
    pub ip: Option<IpAddr>,
    pub pod: Option<PodView<'a>>,
    pub service_port: &'a ServicePort,
    /// The port on the backend: policies match this port.
    pub target_port: u16,
    pub ready: bool,
}

impl Index {
    /// The backends of a service: those of its endpoint slices or, if it has none, the pods that its selector selects. Empty if the
    /// service has no endpoints or does not exist.
    pub fn service_backends<'a>(
        &'a self,
        namespace: &str,
        name: &str,
    ) -> impl Iterator<Item = ServiceBackend<'a>> + use<'a> {
        let entry = self.namespaces.get(namespace);
        let service = entry.and_then(|entry| entry.services.get(name));
        let mut backends = Vec::new();
        if let (Some(entry), Some(service)) = (entry, service) {
            let mut sliced = false;
            for slice in entry.slices_of(service) {
                sliced = true;
                self.slice_backends(entry, service, slice, &mut backends);
            }
            if !sliced {
                entry.selected_backends(service, &mut backends);
            }
        }
        backends.into_iter()
    }

    fn slice_backends<'a>(
        &'a self,
        entry: &'a NamespaceEntry,
        service: &'a Service,
        slice: &'a EndpointSlice,
        backends: &mut Vec<ServiceBackend<'a>>,
    ) {
        for endpoint in &slice.endpoints {
            // kube-proxy uses the first address only; a slice has one family.
            let ip = endpoint.ips.first().copied();
            let pod = endpoint.pod.as_deref().and_then(|name| entry.pod(name)).or_else(|| match self.owner_of(ip?) {
                AddressOwner::Pod(pod) => Some(pod),
                _ => None,
            });
            for (port, service_port) in ports_of(slice, service) {
                let (ready, target_port) = (endpoint.ready, port);
                backends.push(ServiceBackend { ip, pod, service_port, target_port, ready });
            }
        }
    }

    /// The services, with their port, that have the pod at `ip` and `port` behind them.
    pub fn services_of_pod(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Vec<(&Arc<Service>, &ServicePort)> {
        let AddressOwner::Pod(pod) = self.owner_of(ip) else { return Vec::new() };
        let mut found = Vec::new();
        for service in pod.namespace.services.values() {
            let mut slices = pod.namespace.slices_of(service).peekable();
            let service_port = if slices.peek().is_some() {
                slices
                    .filter(|slice| slice.endpoints.iter().any(|endpoint| endpoint.ips.contains(&ip)))
                    .flat_map(|slice| ports_of(slice, service))
                    .find(|(target, service_port)| *target == port && service_port.protocol == protocol)
                    .map(|(_, service_port)| service_port)
            } else if service.selector.as_ref().is_some_and(|selector| selects(selector, pod.pod)) {
                let mut ports = service.ports.iter().filter(|service_port| service_port.protocol == protocol);
                ports.find(|service_port| resolve(service_port, pod.pod) == Some(port))
            } else {
                None
            };
            found.extend(service_port.map(|service_port| (service, service_port)));
        }
        found
    }
}

impl NamespaceEntry {
    fn slices_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
        self.slices.values().filter(|slice| slice.service.as_ref() == Some(&service.name))
    }

    fn selected_backends<'a>(&'a self, service: &'a Service, backends: &mut Vec<ServiceBackend<'a>>) {
        let Some(selector) = &service.selector else { return };
        for pod in self.pods().filter(|view| !view.pod.is_over() && selects(selector, view.pod)) {
            for service_port in &service.ports {
                let Some(target_port) = resolve(service_port, pod.pod) else { continue };
                let ip = pod.pod.ips.first().copied();
                backends.push(ServiceBackend {
                    ip,
                    pod: Some(pod),
                    service_port,
                    target_port,
                    ready: !pod.pod.terminating,
                });
            }
        }
    }
}

/// The slice's ports with their service ports. Both have the same name; a service with one port needs no name.
fn ports_of<'a>(slice: &'a EndpointSlice, service: &'a Service) -> impl Iterator<Item = (u16, &'a ServicePort)> {
    slice.ports.iter().filter_map(|port| {
        let service_port = service.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol)?;
        Some((port.port?, service_port))
    })
}

fn selects(selector: &crate::model::cluster::Labels, pod: &Pod) -> bool {
    selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// The number of a service's target port on `pod`; `None` when the pod has no port of that name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let mut ports = pod.ports.iter().filter(|p| p.protocol == port.protocol);
            ports.find(|p| p.name.as_ref() == Some(name)).map(|p| p.port)
        }
    }
}
