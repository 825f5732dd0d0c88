//! Recorded drops, read back: the connections in a log, for `suggest` and `replay`; and the logs themselves, for every
//! subcommand that reads records.

pub mod input;
pub mod unpack;

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;

use crate::record::magic;

use crate::cluster::Index;
use crate::model::cluster::{Labels, Namespace, Object, Owner, Pod, PodPhase};
use crate::model::{Cause, EndpointKind};
use crate::policy::{Connection, PolicyEndpoint, PolicyIdentity, Transport};
use crate::record::lines;
use crate::record::lines::TOO_LONG;
use crate::record::read::looks_like_a_record;
use crate::record::{Body, Drop, Endpoint, Record};

const LINE_AT_MOST: u64 = lines::LINE_AT_MOST as u64;
/// Different connections that are kept; more are counted.
const MAX_FLOWS: usize = 100_000;

/// One connection that was dropped, once or often.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    pub source: Endpoint,
    pub destination: Endpoint,
    pub transport: Transport,
    pub port: Option<u16>,
    pub packets: u64,
}

/// What a log holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Log {
    /// Each connection once (clients' ports left aside), in order of its first drop.
    pub flows: Vec<Flow>,
    /// Drops that are not policy's and so are not judged.
    pub other_causes: u64,
    /// Records of all kinds.
    pub records: u64,
    /// Lines that are not records, with the first one's place and what it is instead.
    pub broken: u64,
    pub first_broken: Option<(String, String)>,
    /// Drops beyond the table.
    pub beyond: u64,
}

/// Gathers the connections of one log after the other.
#[derive(Debug, Default)]
pub struct Collector {
    pub log: Log,
    known: HashMap<(String, String, Transport, Option<u16>), usize>,
}

impl Collector {
    /// Reads JSON lines of the log called `name`; broken ones are counted, not fatal.
    pub fn read(&mut self, name: &str, input: impl Read) -> (Lines, io::Result<()>) {
        let mut lines = Lines::default();
        let result = each(input, |number, record| {
            lines.count(&record);
            match record {
                Ok(record) => {
                    self.log.records += 1;
                    if let Body::Drop(drop) = record.body {
                        self.log.add(*drop, &mut self.known);
                    }
                }
                Err(what) => {
                    self.log.broken += 1;
                    self.log.first_broken.get_or_insert_with(|| (format!("{name}:{number}"), what));
                }
            }
        });
        (lines, result)
    }
}

/// What one log holds: lines that are not empty.
#[derive(Debug, Default)]
pub struct Lines {
    lines: u64,
    records: u64,
    /// What the first line is that is not a record.
    first_broken: Option<String>,
}

impl Lines {
    pub fn count<R>(&mut self, record: &Result<R, String>) {
        self.lines += 1;
        match record {
            Ok(_) => self.records += 1,
            Err(what) if self.first_broken.is_none() => self.first_broken = Some(what.clone()),
            Err(_) => {}
        }
    }

    /// Counts a line of a log of which only matters whether any is a record.
    pub fn until_record(&mut self, line: &[u8]) {
        if self.records == 0 && !line.trim_ascii().is_empty() {
            self.count(&if looks_like_a_record(line) { Ok(()) } else { Err(magic::line(line)) });
        }
    }

    /// Whether there are lines, and no record among them.
    pub fn problem(&self, input: &input::Input) -> Option<input::Error> {
        if self.records > 0 { None } else { input.without_record(self.lines, self.first_broken.as_deref()) }
    }
}

/// Reads the connections of one log.
pub fn read(input: impl Read) -> io::Result<Log> {
    let mut collector = Collector::default();
    collector.read("input", input).1?;
    Ok(collector.log)
}

/// Hands over every line with its number: the record in it, or what it is instead. Empty lines are left out.
pub fn each(input: impl Read, mut take: impl FnMut(u64, Result<Record, String>)) -> io::Result<()> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = io::Read::take(&mut input, LINE_AT_MOST).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        let mut text = line.as_slice();
        if !line.ends_with(b"\n") && read as u64 == LINE_AT_MOST {
            input.skip_until(b'\n')?;
            text = TOO_LONG;
        }
        if !text.trim_ascii().is_empty() {
            take(number, serde_json::from_slice(text).map_err(|_| magic::line(text)));
        }
    }
    Ok(())
}

impl Log {
    fn add(&mut self, drop: Drop, known: &mut HashMap<(String, String, Transport, Option<u16>), usize>) {
        if !matches!(drop.cause, Cause::Policy | Cause::Disagrees | Cause::Unknown) {
            self.other_causes = self.other_causes.saturating_add(drop.count);
            return;
        }
        let transport = Transport::from_number(crate::model::packet::transport_number(&drop.network.transport));
        let port = drop.destination.port;
        let key = (end_key(&drop.source), end_key(&drop.destination), transport, port);
        if let Some(flow) = known.get(&key).and_then(|at| self.flows.get_mut(*at)) {
            flow.packets = flow.packets.saturating_add(drop.count);
        } else if self.flows.len() < MAX_FLOWS {
            known.insert(key, self.flows.len());
            let (source, destination) = (drop.source, drop.destination);
            self.flows.push(Flow { source, destination, transport, port, packets: drop.count });
        } else {
            self.beyond = self.beyond.saturating_add(drop.count);
        }
    }

    /// The pods and namespaces that the records name and `index` lacks: records carry what a verdict needs of them.
    pub fn missing_objects(&self, index: &Index) -> Vec<Object> {
        let mut objects = Vec::new();
        for end in self.flows.iter().flat_map(|flow| [&flow.source, &flow.destination]) {
            let Some(pod) = &end.pod else { continue };
            if index.namespace(&pod.namespace).is_none_or(|n| n.labels().is_none()) {
                let name: crate::model::Str = pod.namespace.as_str().into();
                let labels = [("kubernetes.io/metadata.name", &*name)].into_iter().collect();
                objects.push(Object::Namespace(Namespace { name, labels }));
            }
            if index.pod(&pod.namespace, &pod.name).is_none() {
                objects.push(Object::Pod(recorded_pod(end, pod)));
            }
        }
        objects
    }
}

fn recorded_pod(end: &Endpoint, pod: &crate::model::PodRef) -> Pod {
    Pod {
        namespace: pod.namespace.as_str().into(),
        name: pod.name.as_str().into(),
        uid: pod.uid.as_deref().map(Into::into),
        labels: pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Labels>(),
        ips: [end.ip].into(),
        node: pod.node.as_deref().map(Into::into),
        host_network: false,
        phase: PodPhase::Running,
        terminating: false,
        ports: Box::default(),
        owner: pod.owner.as_ref().map(|o| Owner { kind: o.kind.as_str().into(), name: o.name.as_str().into() }),
        created: None,
        template: false,
    }
}

/// Replicas are different ends: a policy may select one and not the other.
fn end_key(end: &Endpoint) -> String {
    match &end.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => end.ip.to_string(),
    }
}

impl Flow {
    /// The connection as `index` sees it now.
    pub fn connection<'a>(&'a self, index: &'a Index) -> Connection<'a> {
        Connection {
            source: named(index, &self.source),
            destination: named(index, &self.destination),
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
        format!("{} -> {} {port}", end_key(&self.source), end_key(&self.destination))
    }
}

fn named<'a>(index: &'a Index, end: &'a Endpoint) -> PolicyEndpoint<'a> {
    let ip: Option<IpAddr> = Some(end.ip);
    let identity = match (&end.pod, end.kind) {
        (Some(pod), _) => index.pod(&pod.namespace, &pod.name).map_or(PolicyIdentity::Unknown, PolicyIdentity::Pod),
        (None, EndpointKind::Node) => PolicyIdentity::Node(end.node.as_deref().unwrap_or_default()),
        (None, EndpointKind::External | EndpointKind::Service) => PolicyIdentity::External,
        (None, _) => PolicyIdentity::Unknown,
    };
    PolicyEndpoint { ip, identity }
}
