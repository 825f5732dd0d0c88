//! The cluster's objects: small, immutable, without Kubernetes client types.
//!
//! Policies keep the order of their rules, peers and ports, so that `ingress[0].from[1]` in a record is the field in
//! the user's own YAML.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

pub use super::Direction;
use super::Str;

/// Labels, sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Str, Str)]>);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&Str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Str, &Str)> {
        self.0.iter().map(|(k, v)| (k, v))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<Str>, V: Into<Str>> FromIterator<(K, V)> for Labels {
    /// The last value of a repeated key wins, as in a map.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let map: std::collections::BTreeMap<Str, Str> = pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        Labels(map.into_iter().collect())
    }
}

/// A namespace. `kubernetes.io/metadata.name` is always among its labels: the API server sets it (KEP-2161), files may not.
#[derive(Debug, Clone, PartialEq)]
pub struct Namespace {
    pub name: Str,
    pub labels: Labels,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub name: Str,
    pub labels: Labels,
    pub ips: Box<[IpAddr]>,
    pub pod_cidrs: Box<[IpNet]>,
}

/// A pod, or a workload's pod template (`template`): a template has labels and ports but no address.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    pub namespace: Str,
    pub name: Str,
    pub uid: Option<Str>,
    pub labels: Labels,
    /// Primary address first.
    pub ips: Box<[IpAddr]>,
    pub node: Option<Str>,
    pub host_network: bool,
    pub phase: PodPhase,
    /// `metadata.deletionTimestamp` is set. A terminating pod stays subject to policy.
    pub terminating: bool,
    pub ports: Box<[ContainerPort]>,
    pub owner: Option<PodOwner>,
    pub created: Option<Timestamp>,
    pub template: bool,
}

impl Pod {
    /// Succeeded and Failed pods keep `podIP` in their status, although another pod may have the address.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }

    /// False for hostNetwork pods, which share their node's addresses, and for finished pods.
    pub fn owns_addresses(&self) -> bool {
        !self.host_network && !self.is_over()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodPhase {
    Pending,
    #[default]
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// The workload that made a pod: for a Deployment's pod the Deployment, not its ReplicaSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodOwner {
    pub kind: Str,
    pub name: Str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: Option<Str>,
    pub port: u16,
    pub protocol: Protocol,
    /// Declared by an init container with `restartPolicy: Always`: whether such a named port counts depends on the
    /// plugin's version (kubernetes#125285).
    pub sidecar: bool,
}

/// The protocols that NetworkPolicy v1 can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A networking.k8s.io/v1 NetworkPolicy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub namespace: Str,
    pub name: Str,
    pub uid: Option<Str>,
    /// `suggest` prints the labels and annotations with the changed policy. kubectl's own record of the last apply is not among
    /// them.
    pub labels: Labels,
    pub annotations: Labels,
    pub generation: Option<i64>,
    /// The last change that the source knows: creation, or the newest managedFields entry.
    pub changed: Option<Timestamp>,
    /// The pods this policy isolates, in its own namespace.
    pub subject: Selector,
    /// `spec.policyTypes` as written; `None` when it is absent or empty and the API's default applies.
    pub declared_types: Option<Box<[Direction]>>,
    pub ingress: Box<[Rule]>,
    pub egress: Box<[Rule]>,
}

impl Policy {
    /// Whether this policy isolates its pods in `direction`. Without declared types the API's default applies: Ingress, and
    /// Egress if there is an egress rule.
    pub fn isolates(&self, direction: Direction) -> bool {
        match (&self.declared_types, direction) {
            (Some(types), _) => types.contains(&direction),
            (None, Direction::Ingress) => true,
            (None, Direction::Egress) => !self.egress.is_empty(),
        }
    }

    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// One element of `ingress` or `egress`. A missing and an empty list mean the same to the API: no restriction. The lint
/// `empty-peers` distinguishes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub peers: Option<Box<[Peer]>>,
    pub ports: Option<Box<[PortMatch]>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Peer {
    /// `podSelector` and/or `namespaceSelector` of one list item; at least one is present. `namespaces: None` means the
    /// policy's own namespace, `pods: None` every pod of the selected namespaces.
    Pods { namespaces: Option<Selector>, pods: Option<Selector> },
    /// `ipBlock`.
    Block { cidr: IpNet, except: Box<[IpNet]> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMatch {
    /// TCP, the API's default, if `protocol_defaulted`: the file has no protocol.
    pub protocol: Protocol,
    pub protocol_defaulted: bool,
    pub port: PortSpec,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortSpec {
    Any,
    /// `port`, and `endPort` (inclusive) where given, else the same number.
    Range(u16, u16),
    /// Resolved on the destination pod, by name and protocol.
    Named(Str),
}

impl fmt::Display for PortMatch {
    /// For people: `5432/TCP`, `32000-32768/TCP`, `http/TCP`, `any/UDP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.port {
            PortSpec::Any => write!(f, "any/{}", self.protocol),
            PortSpec::Range(a, b) if a == b => write!(f, "{a}/{}", self.protocol),
            PortSpec::Range(a, b) => write!(f, "{a}-{b}/{}", self.protocol),
            PortSpec::Named(name) => write!(f, "{name}/{}", self.protocol),
        }
    }
}

/// A label selector: every requirement must hold; with none, everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// `matchLabels` (as one-value `In`) first, sorted by key, then `matchExpressions` in their order.
    pub requirements: Box<[Requirement]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: Str,
    pub operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    In(Box<[Str]>),
    NotIn(Box<[Str]>),
    Exists,
    DoesNotExist,
}

impl Requirement {
    /// An absent key satisfies `NotIn` and `DoesNotExist`, never `In` or `Exists` (labels.Selector).
    pub fn matches(&self, labels: &Labels) -> bool {
        let found = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => found.is_some_and(|v| values.contains(v)),
            Operator::NotIn(values) => found.is_none_or(|v| !values.contains(v)),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
        }
    }
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl fmt::Display for Requirement {
    /// The notation of `kubectl get -l`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{}={}", self.key, values[0]),
            Operator::In(values) => write!(f, "{} in ({})", self.key, values.join(",")),
            Operator::NotIn(values) => write!(f, "{} notin ({})", self.key, values.join(",")),
            Operator::Exists => write!(f, "{}", self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("{}");
        }
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub namespace: Str,
    pub name: Str,
    pub uid: Option<Str>,
    /// Cluster IPs, external IPs and load-balancer IPs. Empty for a headless service.
    pub ips: Box<[IpAddr]>,
    pub ports: Box<[ServicePort]>,
    /// `None`: Kubernetes does not make the endpoints.
    pub selector: Option<Labels>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Option<Str>,
    pub protocol: Protocol,
    pub port: u16,
    pub target: TargetPort,
    pub node_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(Str),
}

#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSlice {
    pub namespace: Str,
    pub name: Str,
    /// From the label `kubernetes.io/service-name`.
    pub service: Option<Str>,
    pub endpoints: Box<[SliceEndpoint]>,
    pub ports: Box<[EndpointPort]>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SliceEndpoint {
    pub ips: Box<[IpAddr]>,
    pub ready: bool,
    pub node: Option<Str>,
    /// Name of the pod in the slice's namespace, where `targetRef` names one.
    pub pod: Option<Str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    pub name: Option<Str>,
    pub protocol: Protocol,
    pub port: Option<u16>,
}

/// A policy of an API that is not evaluated. It may allow or deny what NetworkPolicy v1 does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherPolicy {
    /// For example `policy.networking.k8s.io`.
    pub group: Str,
    pub kind: Str,
    pub namespace: Option<Str>,
    pub name: Str,
}
