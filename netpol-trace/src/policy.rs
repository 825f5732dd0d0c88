//! Evaluates NetworkPolicy v1 for one connection, with the evidence. Pure: no clock, no kube client, no I/O.
//!
//! ```text
//! Connection ─> evaluate ─> PolicyEvaluation (borrowed, no allocation) ─> explain ─> model::Verdict
//!                 │                                                   │
//!                 └─ matching: one rule, peer or port                 └─ nearest: the rule that came closest
//! ```
//!
//! [`check_rules`] compares every rule with the connection, for `explain`; [`hint`] names the usual mistake.
//!
//! [`evaluate`] is the fast core; [`verdict_of`] also renders the verdict of a record. Where Kubernetes leaves a point to the
//! CNI, [`CniOptions`] decides, and the verdict's notes name that point.

mod evaluate;
mod explain;
mod hint;
pub mod lint;
mod matching;
mod miss;
mod nearest;
mod rules;
pub mod suggest;
mod summary;

use std::net::IpAddr;

pub use evaluate::{AllowedBy, IsolatingPolicies, PolicyEvaluation, PolicyResult, SideEvaluation, evaluate};
pub use explain::{ExplainedVerdict, explain, name_changes, verdict_of, verdict_result};
pub use hint::{ClientRequest, FTP_DATA, hint, hint_of};
use jiff::Timestamp;
pub use matching::{Assumptions, UndeterminedReason};
pub(crate) use miss::bounded;
pub use rules::{ItemCheck, MatchResult, RuleCheck, check_rules};
pub use summary::summary;

use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, Protocol};

/// The connection to evaluate: from the source to the address and port that the destination's policy sees (the
/// backend, after a service's translation).
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    pub source: PolicyEndpoint<'a>,
    pub destination: PolicyEndpoint<'a>,
    pub transport: Transport,
    /// The destination's port; `None` where it is not known (a later fragment) or the transport has none.
    pub port: Option<u16>,
    /// Time of the packet; `changed_ago_seconds` of the policies counts back from here.
    pub at: Option<Timestamp>,
}

/// The protocol over IP. A policy can name only those of the first variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Named(Protocol),
    /// ICMP and ICMPv6.
    Icmp,
    /// Any other, by its IANA number.
    Other(u8),
}

impl Transport {
    /// By the protocol number of the IP header.
    pub fn from_number(number: u8) -> Transport {
        match number {
            6 => Transport::Named(Protocol::Tcp),
            17 => Transport::Named(Protocol::Udp),
            132 => Transport::Named(Protocol::Sctp),
            1 | 58 => Transport::Icmp,
            other => Transport::Other(other),
        }
    }
}

/// The source or the destination, with what it is in the cluster.
#[derive(Debug, Clone, Copy)]
pub struct PolicyEndpoint<'a> {
    /// The address in use. `None` for a pod given by name: then each of its addresses counts.
    pub ip: Option<IpAddr>,
    pub identity: PolicyIdentity<'a>,
}

impl<'a> PolicyEndpoint<'a> {
    /// A pod by name: each of its addresses counts.
    pub fn pod(view: PodView<'a>) -> PolicyEndpoint<'a> {
        PolicyEndpoint { ip: None, identity: PolicyIdentity::Pod(view) }
    }

    pub fn external(ip: IpAddr) -> PolicyEndpoint<'a> {
        PolicyEndpoint { ip: Some(ip), identity: PolicyIdentity::External }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum PolicyIdentity<'a> {
    Pod(PodView<'a>),
    /// A node, by name. The packets of hostNetwork pods have their node's address.
    Node(&'a str),
    /// Outside of the cluster.
    External,
    /// Inside the cluster's address ranges without a known owner, or with several.
    Unknown,
}

/// Points that Kubernetes leaves to the CNI. Where a point decides, `None` makes the verdict undetermined, and a set value is
/// named in the verdict's notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniOptions {
    /// Whether `ipBlock` matches pod IPs.
    pub ipblock_matches_pods: Option<bool>,
    /// Whether policy treats a hostNetwork pod like any other pod (`Some(false)`: like its node).
    pub host_network_is_pod: Option<bool>,
    /// Whether a pod and the node it runs on may always talk.
    pub own_node_allowed: Option<bool>,
    /// Whether ICMP and other protocols that a policy can't name reach an isolated pod (`Some(false)`: only by a rule
    /// without ports).
    pub other_protocols_pass: Option<bool>,
}

impl Default for CniOptions {
    fn default() -> Self {
        CniOptions {
            // Kubernetes' own e2e tests require the match (calico#6634).
            ipblock_matches_pods: Some(true),
            // The documentation leaves it open, and plugins do both.
            host_network_is_pod: None,
            // "Traffic to and from the node where a pod is running is always allowed."
            own_node_allowed: Some(true),
            // Undefined; plugins block, pass, or block some ICMP types only.
            other_protocols_pass: None,
        }
    }
}

/// A direction as `policyTypes` spells it.
fn type_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}
