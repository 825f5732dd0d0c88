//! The connections that a log has drops of, for `suggest` and `replay`.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::IpAddr;

use super::LogCounts;
use crate::cluster::Index;
use crate::cluster::Object;
use crate::model::cluster::{Labels, Namespace, Pod, PodOwner, PodPhase};
use crate::model::packet::transport_number;
use crate::model::{EndpointKind, OwnerRef, PodRef};
use crate::policy::{Connection, PolicyEndpoint, PolicyIdentity, Transport};
use crate::record::magic::UNKNOWN_RECORD;
use crate::record::read::{EndpointView, RecordView};

/// Different connections that are kept; packets of more are counted.
const MAX_CONNECTIONS: usize = 100_000;

/// One connection that was dropped, once or often.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedConnection {
    pub source: RecordedEndpoint,
    pub destination: RecordedEndpoint,
    pub transport: Transport,
    pub port: Option<u16>,
    pub packets: u64,
}

/// An endpoint as a record names it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedEndpoint {
    kind: EndpointKind,
    ip: IpAddr,
    node: String,
    pod: Option<PodRef>,
}

/// The connections of one or more logs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordedConnections {
    /// Each connection once, whatever its clients' ports, in order of its first drop.
    pub connections: Vec<RecordedConnection>,
    /// Packets dropped for another cause than policy; those are not evaluated.
    pub other_causes: u64,
    /// Records of all kinds.
    pub records: u64,
    /// Lines that are not records, with the first one's place and what it is instead.
    pub broken: u64,
    pub first_broken: Option<(String, String)>,
    /// Packets of connections beyond the limit.
    pub beyond: u64,
}

type ConnectionKey = (String, String, Transport, Option<u16>);

/// Reads one log after the other.
#[derive(Debug, Default)]
pub struct Collector {
    pub recorded: RecordedConnections,
    known: HashMap<ConnectionKey, usize>,
}

impl Collector {
    /// Reads the JSON lines of the log called `name`. Counts lines that are not records, and goes on.
    pub fn read(&mut self, name: &str, input: impl Read) -> (LogCounts, io::Result<()>) {
        super::each(input, |number, record| {
            let problem = match record {
                Ok(record) => {
                    self.recorded.records += 1;
                    if &*record.kind != "drop" || self.add(&record).is_some() {
                        return;
                    }
                    UNKNOWN_RECORD.to_owned()
                }
                Err(line) => line.to_string(),
            };
            self.recorded.broken += 1;
            self.recorded.first_broken.get_or_insert_with(|| (format!("{name}:{number}"), problem));
        })
    }

    /// Adds a drop. Returns `None` if an endpoint is missing or has no address.
    fn add(&mut self, record: &RecordView<'_>) -> Option<()> {
        let recorded = &mut self.recorded;
        let packets = record.packets();
        if !matches!(&*record.cause, "policy" | "disagrees" | "unknown") {
            recorded.other_causes = recorded.other_causes.saturating_add(packets);
            return Some(());
        }
        let source = RecordedEndpoint::of(record.source.as_ref()?)?;
        let destination = RecordedEndpoint::of(record.destination.as_ref()?)?;
        let transport = Transport::from_number(transport_number(&record.network.transport));
        let port = record.destination.as_ref()?.port;
        let key = (source.name(), destination.name(), transport, port);
        if let Some(known) = self.known.get(&key).and_then(|at| recorded.connections.get_mut(*at)) {
            known.packets = known.packets.saturating_add(packets);
        } else if recorded.connections.len() < MAX_CONNECTIONS {
            self.known.insert(key, recorded.connections.len());
            recorded.connections.push(RecordedConnection { source, destination, transport, port, packets });
        } else {
            recorded.beyond = recorded.beyond.saturating_add(packets);
        }
        Some(())
    }
}

/// Reads the connections of one log.
pub fn read(input: impl Read) -> io::Result<RecordedConnections> {
    let mut collector = Collector::default();
    collector.read("input", input).1?;
    Ok(collector.recorded)
}

impl RecordedConnections {
    /// Returns the pods and namespaces that the records name and `index` lacks. A record has the labels that a verdict needs.
    pub fn missing_objects(&self, index: &Index) -> Vec<Object> {
        let mut objects = Vec::new();
        for endpoint in self.connections.iter().flat_map(|connection| [&connection.source, &connection.destination]) {
            let Some(pod) = &endpoint.pod else { continue };
            if index.namespace(&pod.namespace).is_none_or(|n| n.labels().is_none()) {
                let name: crate::model::Str = pod.namespace.as_str().into();
                let labels = [("kubernetes.io/metadata.name", &*name)].into_iter().collect();
                objects.push(Object::Namespace(Namespace { name, labels }));
            }
            if index.pod(&pod.namespace, &pod.name).is_none() {
                objects.push(Object::Pod(recorded_pod(endpoint.ip, pod)));
            }
        }
        objects
    }
}

fn recorded_pod(ip: IpAddr, pod: &PodRef) -> Pod {
    Pod {
        namespace: pod.namespace.as_str().into(),
        name: pod.name.as_str().into(),
        uid: pod.uid.as_deref().map(Into::into),
        labels: pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Labels>(),
        ips: [ip].into(),
        node: pod.node.as_deref().map(Into::into),
        host_network: false,
        phase: PodPhase::Running,
        terminating: false,
        ports: Box::default(),
        owner: pod.owner.as_ref().map(|o| PodOwner { kind: o.kind.as_str().into(), name: o.name.as_str().into() }),
        created: None,
        template: false,
    }
}

impl RecordedEndpoint {
    /// Returns `None` if the view has no address.
    fn of(view: &EndpointView<'_>) -> Option<RecordedEndpoint> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let pod = view.pod.as_ref().map(|pod| PodRef {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            uid: some(&pod.uid),
            labels: pod.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            owner: pod.owner.as_ref().map(|o| OwnerRef { kind: o.kind.to_string(), name: o.name.to_string() }),
            node: some(&pod.node),
        });
        let kind = match &*view.kind {
            "pod" => EndpointKind::Pod,
            "node" => EndpointKind::Node,
            "service" => EndpointKind::Service,
            "external" => EndpointKind::External,
            _ => EndpointKind::Unknown,
        };
        Some(RecordedEndpoint { kind, ip: view.ip.parse().ok()?, node: view.node.to_string(), pod })
    }

    /// The pod's name or the address. Replicas have different names: a policy may select one and not the other.
    fn name(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => self.ip.to_string(),
        }
    }

    fn in_index<'a>(&'a self, index: &'a Index) -> PolicyEndpoint<'a> {
        let identity = match (&self.pod, self.kind) {
            (Some(pod), _) => index.pod(&pod.namespace, &pod.name).map_or(PolicyIdentity::Unknown, PolicyIdentity::Pod),
            (None, EndpointKind::Node) => PolicyIdentity::Node(&self.node),
            (None, EndpointKind::External | EndpointKind::Service) => PolicyIdentity::External,
            (None, _) => PolicyIdentity::Unknown,
        };
        PolicyEndpoint { ip: Some(self.ip), identity }
    }
}

impl RecordedConnection {
    /// The connection as `index` has its endpoints now.
    pub fn connection<'a>(&'a self, index: &'a Index) -> Connection<'a> {
        Connection {
            source: self.source.in_index(index),
            destination: self.destination.in_index(index),
            transport: self.transport,
            port: self.port,
            at: None,
        }
    }

    /// `staging/api-7d9 -> staging/db-0 3306/TCP`, not yet escaped.
    pub fn title(&self) -> String {
        let port = match (self.transport, self.port) {
            (Transport::Named(protocol), Some(port)) => format!("{port}/{protocol}"),
            (Transport::Named(protocol), None) => protocol.to_string(),
            (Transport::Icmp, _) => "ICMP".to_owned(),
            (Transport::Other(number), _) => format!("protocol {number}"),
        };
        format!("{} -> {} {port}", self.source.name(), self.destination.name())
    }
}
