//! Resolves the endpoints and the port that were typed to the connections that a policy sees.

use std::net::IpAddr;

use crate::cluster::Index;
use crate::cluster::index::{AddressOwner, PodView, ServiceBackend};
use crate::missing::{self, few};
use crate::model::cluster::{Pod, Protocol, Service, ServicePort};
use crate::model::{Address, ServiceRef};
use crate::policy::{Connection, PolicyEndpoint, PolicyIdentity, Transport};

/// What is wrong with the arguments.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error("--{option} {given:?}: {what}")]
    Argument { option: &'static str, given: String, what: String },
    #[error("--port is needed: {0}")]
    PortNeeded(String),
}

/// The arguments as typed.
#[derive(Debug)]
pub(super) struct ConnectionArgs<'q> {
    pub from: &'q str,
    pub to: &'q str,
    pub port: Option<&'q str>,
}

#[derive(Debug)]
pub(super) struct Resolution<'a> {
    pub from: String,
    pub to: String,
    pub service: Option<ServiceRef>,
    /// For a service, one for each pod behind it; else one.
    pub cases: Vec<ResolvedConnection<'a>>,
    /// Why there is no connection.
    pub why_none: Option<String>,
}

#[derive(Debug)]
pub(super) struct ResolvedConnection<'a> {
    pub connection: Connection<'a>,
    pub from: String,
    pub to: String,
    pub port: String,
    /// The service's address, before NAT.
    pub original: Option<Address>,
    pub resolved: Vec<String>,
}

/// An endpoint: its identity, its name, and a note on how it was resolved.
struct ResolvedEndpoint<'a> {
    end: PolicyEndpoint<'a>,
    name: String,
    how: Option<String>,
}

enum ResolvedTarget<'a> {
    ResolvedEndpoint(ResolvedEndpoint<'a>),
    Service(&'a Service, Option<IpAddr>),
}

pub(super) fn resolve<'a>(index: &'a Index, question: &ConnectionArgs<'_>) -> Result<Resolution<'a>, EndpointError> {
    let wrong = |option: &'static str, given: &str| {
        let given = given.to_owned();
        move |what: String| EndpointError::Argument { option, given, what }
    };
    let from = match target(index, question.from).map_err(wrong("from", question.from))? {
        ResolvedTarget::ResolvedEndpoint(party) => party,
        ResolvedTarget::Service(..) => {
            let what = "a service does not open connections; name the pod that does".to_owned();
            return Err(wrong("from", question.from)(what));
        }
    };
    let port = question.port.unwrap_or_default();
    match target(index, question.to).map_err(wrong("to", question.to))? {
        ResolvedTarget::ResolvedEndpoint(to) => {
            let example = || EndpointError::PortNeeded("5432/TCP, 53/UDP, 80 or a port's name".to_owned());
            let (transport, number) = pod_port(question.port.ok_or_else(example)?, &to).map_err(wrong("port", port))?;
            let (from_name, to_name) = (from.name.clone(), to.name.clone());
            let case = case(&from, &to, transport, number, None);
            Ok(Resolution { from: from_name, to: to_name, service: None, cases: vec![case], why_none: None })
        }
        ResolvedTarget::Service(service, ip) => {
            let service_port = match (question.port, &*service.ports) {
                (None, [only]) => only,
                (None, _) => {
                    let (namespace, name) = (&service.namespace, &service.name);
                    let ports = service_ports(service);
                    return Err(EndpointError::PortNeeded(format!("service {namespace}/{name} has {ports}")));
                }
                (Some(text), _) => service_port(text, service).map_err(wrong("port", port))?,
            };
            Ok(through_service(index, &from, service, service_port, ip))
        }
    }
}

fn case<'a>(
    from: &ResolvedEndpoint<'a>,
    to: &ResolvedEndpoint<'a>,
    transport: Transport,
    port: Option<u16>,
    original: Option<Address>,
) -> ResolvedConnection<'a> {
    let shown = match (transport, port) {
        (Transport::Named(protocol), Some(port)) => format!("{port}/{protocol}"),
        (Transport::Named(protocol), None) => protocol.to_string(),
        (Transport::Icmp, _) => "ICMP".to_owned(),
        (Transport::Other(number), _) => format!("protocol {number}"),
    };
    ResolvedConnection {
        connection: Connection { source: from.end, destination: to.end, transport, port, at: None },
        from: from.name.clone(),
        to: to.name.clone(),
        port: shown,
        original,
        resolved: [&from.how, &to.how].into_iter().flatten().cloned().collect(),
    }
}

fn through_service<'a>(
    index: &'a Index,
    from: &ResolvedEndpoint<'a>,
    service: &'a Service,
    service_port: &ServicePort,
    ip: Option<IpAddr>,
) -> Resolution<'a> {
    let address = ip.or_else(|| service.ips.first().copied());
    let original = address.map(|ip| Address { ip, port: Some(service_port.port) });
    let same_port = |b: &ServiceBackend<'a>| b.service_port == service_port;
    let mut backends: Vec<ServiceBackend<'a>> =
        index.service_backends(&service.namespace, &service.name).filter(same_port).collect();
    // Each address family has its own slice. A pod in both is one backend.
    let key = |b: &ServiceBackend<'a>| (b.pod.map(|p| (p.pod.namespace.clone(), p.pod.name.clone())), b.target_port);
    let mut seen = std::collections::HashSet::new();
    backends.retain(|b| b.pod.is_none() || seen.insert(key(b)));
    let case = |backend: &ServiceBackend<'a>| {
        let to = match (backend.pod, backend.ip) {
            (Some(view), _) => ResolvedEndpoint { end: PolicyEndpoint::pod(view), name: pod_name(view.pod), how: None },
            (None, Some(ip)) => at_address(index, ip),
            (None, None) => ResolvedEndpoint {
                end: PolicyEndpoint { ip: None, identity: PolicyIdentity::Unknown },
                name: "unknown".to_owned(),
                how: None,
            },
        };
        let transport = Transport::Named(service_port.protocol);
        case(from, &to, transport, Some(backend.target_port), original)
    };
    let cases: Vec<_> = backends.iter().map(case).collect();
    let name = format!("{}/{}", service.namespace, service.name);
    let why = format!(
        "service {name} has no pod behind port {}/{}, so there is no destination to evaluate",
        service_port.port, service_port.protocol
    );
    Resolution {
        from: from.name.clone(),
        to: format!("{}/svc/{}", service.namespace, service.name),
        service: Some(ServiceRef {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            port: Some(service_port.port),
        }),
        cases,
        why_none: Some(why),
    }
}

fn target<'a>(index: &'a Index, text: &str) -> Result<ResolvedTarget<'a>, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(address_or_service(index, ip));
    }
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [namespace, name] => pod(index, namespace, name).map(ResolvedTarget::ResolvedEndpoint),
        [namespace, kind, name] => named(index, namespace, kind, name),
        _ => Err("expected NS/POD, NS/KIND/NAME or an IP address, such as staging/deploy/api".to_owned()),
    }
}

fn named<'a>(index: &'a Index, namespace: &str, kind: &str, name: &str) -> Result<ResolvedTarget<'a>, String> {
    let kind = match kind.to_ascii_lowercase().as_str() {
        "po" | "pod" | "pods" => return pod(index, namespace, name).map(ResolvedTarget::ResolvedEndpoint),
        "svc" | "service" | "services" => {
            let service = index.service(namespace, name);
            let services =
                || index.namespace(namespace).into_iter().flat_map(|n| n.services()).map(|s| s.name.to_string());
            return service
                .map(|service| ResolvedTarget::Service(service, None))
                .ok_or_else(|| not_found(index, namespace, "service", name, &services().collect::<Vec<_>>()));
        }
        "deploy" | "deployment" | "deployments" => "Deployment",
        "sts" | "statefulset" | "statefulsets" => "StatefulSet",
        "ds" | "daemonset" | "daemonsets" => "DaemonSet",
        "rs" | "replicaset" | "replicasets" => "ReplicaSet",
        "job" | "jobs" => "Job",
        "cj" | "cronjob" | "cronjobs" => "CronJob",
        other => {
            return Err(format!("unknown kind {other:?}: expected pod, svc, deploy, sts, ds, rs, job or cronjob"));
        }
    };
    workload(index, namespace, kind, name).map(ResolvedTarget::ResolvedEndpoint)
}

fn pod<'a>(index: &'a Index, namespace: &str, name: &str) -> Result<ResolvedEndpoint<'a>, String> {
    let pods = || index.namespace(namespace).into_iter().flat_map(|n| n.pods()).map(|view| view.pod.name.to_string());
    let view = index
        .pod(namespace, name)
        .ok_or_else(|| not_found(index, namespace, "pod", name, &pods().collect::<Vec<_>>()))?;
    let over =
        view.pod.is_over().then(|| format!("{} has finished: it sends and receives nothing", pod_name(view.pod)));
    Ok(ResolvedEndpoint {
        end: PolicyEndpoint::pod(view),
        name: pod_name(view.pod),
        how: over.or_else(|| template_note(view)),
    })
}

/// Returns a running pod of the workload, because it has an address; if there is none, the template.
fn workload<'a>(index: &'a Index, namespace: &str, kind: &str, name: &str) -> Result<ResolvedEndpoint<'a>, String> {
    let owned = |view: &PodView<'a>| {
        let owner = view.pod.owner.as_ref();
        !view.pod.template && !view.pod.is_over() && owner.is_some_and(|o| *o.kind == *kind && *o.name == *name)
    };
    let mut pods = index.namespace(namespace).into_iter().flat_map(|n| n.pods()).filter(owned);
    if let Some(view) = pods.next() {
        let how = match 1 + pods.count() {
            1 => format!("{} is the pod of {kind} {namespace}/{name}", pod_name(view.pod)),
            many => format!("{} stands for the {many} pods of {kind} {namespace}/{name}", pod_name(view.pod)),
        };
        return Ok(ResolvedEndpoint { end: PolicyEndpoint::pod(view), name: pod_name(view.pod), how: Some(how) });
    }
    if let Some(view) = index.workload(namespace, kind, name) {
        return Ok(ResolvedEndpoint {
            end: PolicyEndpoint::pod(view),
            name: pod_name(view.pod),
            how: template_note(view),
        });
    }
    let mut known: Vec<String> = index
        .namespace(namespace)
        .into_iter()
        .flat_map(|n| n.pods())
        .filter_map(|view| view.pod.owner.as_ref())
        .filter(|owner| *owner.kind == *kind)
        .map(|owner| owner.name.to_string())
        .collect();
    known.dedup();
    Err(not_found(index, namespace, kind, name, &known))
}

fn template_note(view: PodView<'_>) -> Option<String> {
    let note = || format!("{} is a pod template: it has labels and ports, and no address", pod_name(view.pod));
    view.pod.template.then(note)
}

/// `staging/api-7d9`; for a template `staging/deploy/api`.
fn pod_name(pod: &Pod) -> String {
    let kind = pod.owner.as_ref().filter(|_| pod.template).map(|owner| match &*owner.kind {
        "Deployment" => "deploy/",
        "StatefulSet" => "sts/",
        "DaemonSet" => "ds/",
        "ReplicaSet" => "rs/",
        "CronJob" => "cronjob/",
        _ => "job/",
    });
    format!("{}/{}{}", pod.namespace, kind.unwrap_or_default(), pod.name)
}

/// Returns a message with the names that exist.
fn not_found(index: &Index, namespace: &str, what: &str, name: &str, known: &[String]) -> String {
    if index.namespace(namespace).is_none() {
        let mut all: Vec<_> = index.namespaces().map(|(name, _)| name.to_string()).collect();
        all.sort();
        return missing::namespace(namespace, &all);
    }
    missing::named(what, namespace, name, known)
}

fn address_or_service(index: &Index, ip: IpAddr) -> ResolvedTarget<'_> {
    let services = || index.namespaces().flat_map(|(_, n)| n.services()).filter(|s| s.ips.contains(&ip));
    match (index.owner_of(ip), services().next()) {
        (AddressOwner::None, Some(service)) => ResolvedTarget::Service(service, Some(ip)),
        _ => ResolvedTarget::ResolvedEndpoint(at_address(index, ip)),
    }
}

/// Returns the endpoint with this address: a pod, a node, external, or unknown.
pub(super) fn owner(index: &Index, ip: IpAddr) -> PolicyEndpoint<'_> {
    let identity = match index.owner_of(ip) {
        AddressOwner::Pod(view) => PolicyIdentity::Pod(view),
        AddressOwner::Node(node) => PolicyIdentity::Node(&node.name),
        AddressOwner::Ambiguous(_) | AddressOwner::Either(..) | AddressOwner::Former(_) => PolicyIdentity::Unknown,
        AddressOwner::None if index.in_pod_network(ip) => PolicyIdentity::Unknown,
        AddressOwner::None => PolicyIdentity::External,
    };
    PolicyEndpoint { ip: Some(ip), identity }
}

fn at_address(index: &Index, ip: IpAddr) -> ResolvedEndpoint<'_> {
    let end = owner(index, ip);
    let (name, how) = match (&end.identity, index.owner_of(ip)) {
        (PolicyIdentity::Pod(view), _) => (pod_name(view.pod), Some(format!("{ip} is {}", pod_name(view.pod)))),
        (PolicyIdentity::Node(name), _) => (ip.to_string(), Some(format!("{ip} is node {name}"))),
        (PolicyIdentity::Unknown, AddressOwner::Ambiguous(count)) => {
            (ip.to_string(), Some(format!("{count} pods claim {ip}")))
        }
        (PolicyIdentity::Unknown, _) => {
            (ip.to_string(), Some(format!("{ip} is in the pod network, and no pod of the input has it")))
        }
        (PolicyIdentity::External, _) => (ip.to_string(), None),
    };
    ResolvedEndpoint { end, name, how }
}

/// Parses the port of a destination that is not a service.
fn pod_port(text: &str, to: &ResolvedEndpoint<'_>) -> Result<(Transport, Option<u16>), String> {
    if text.eq_ignore_ascii_case("icmp") {
        return Ok((Transport::Icmp, None));
    }
    let (name, wanted) = split_port(text)?;
    if let Ok(number) = name.parse::<u16>() {
        return Ok((Transport::Named(wanted.unwrap_or(Protocol::Tcp)), Some(number)));
    }
    let PolicyIdentity::Pod(view) = to.end.identity else {
        return Err(format!("{} is not a pod, and only pods have named ports: give the number", to.name));
    };
    let named = view.pod.ports.iter().filter(|p| p.name.as_deref() == Some(name));
    let fits = |p: &&crate::model::cluster::ContainerPort| wanted.is_none_or(|w| w == p.protocol);
    match named.clone().find(fits) {
        Some(port) => Ok((Transport::Named(port.protocol), Some(port.port))),
        None => {
            let known =
                view.pod.ports.iter().filter_map(|p| Some(format!("{} ({}/{})", p.name.as_ref()?, p.port, p.protocol)));
            let known: Vec<_> = known.collect();
            Err(format!("{} has no port of that name; it has {}", to.name, few(&known)))
        }
    }
}

fn service_ports(service: &Service) -> String {
    let shown = |p: &ServicePort| match &p.name {
        Some(name) => format!("{}/{} ({name})", p.port, p.protocol),
        None => format!("{}/{}", p.port, p.protocol),
    };
    few(&service.ports.iter().map(shown).collect::<Vec<_>>())
}

fn service_port<'s>(text: &str, service: &'s Service) -> Result<&'s ServicePort, String> {
    let (name, wanted) = split_port(text)?;
    let number = name.parse::<u16>().ok();
    let fits = |p: &&ServicePort| match number {
        Some(number) => p.port == number && p.protocol == wanted.unwrap_or(Protocol::Tcp),
        None => p.name.as_deref() == Some(name) && wanted.is_none_or(|w| w == p.protocol),
    };
    service.ports.iter().find(fits).ok_or_else(|| {
        format!("service {}/{} has no such port; it has {}", service.namespace, service.name, service_ports(service))
    })
}

fn split_port(text: &str) -> Result<(&str, Option<Protocol>), String> {
    let (name, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((name, "TCP" | "tcp")) => (name, Some(Protocol::Tcp)),
        Some((name, "UDP" | "udp")) => (name, Some(Protocol::Udp)),
        Some((name, "SCTP" | "sctp")) => (name, Some(Protocol::Sctp)),
        Some((_, other)) => return Err(format!("unknown protocol {other:?}: expected TCP, UDP or SCTP")),
    };
    let digits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    if name.is_empty() || digits && name.parse::<u16>().is_err() {
        return Err("expected a number up to 65535 or a name".to_owned());
    }
    Ok((name, protocol))
}
