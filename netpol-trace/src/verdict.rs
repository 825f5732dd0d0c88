//! What NetworkPolicy v1 says of one connection, with the evidence. Pure: no clock, no kube client, no I/O.

use std::net::IpAddr;

use crate::cluster::Index;
use crate::cluster::index::PodView;
use crate::cluster::model::Protocol;

/// The connection that is judged: from the source to the address and port that the destination's policy sees (the
/// backend, after a service's translation).
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    pub source: End<'a>,
    pub destination: End<'a>,
    /// `None`: a protocol that NetworkPolicy v1 can't name (ICMP and others).
    pub protocol: Option<Protocol>,
    pub port: Option<u16>,
}

/// One end, resolved to what it is before judging.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    pub ip: Option<IpAddr>,
    pub who: Who<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    Pod(PodView<'a>),
    /// A node, by name; also a hostNetwork pod, which policy can't tell from its node.
    Node(&'a str),
    /// Outside of the cluster.
    External,
    /// Inside the cluster's address ranges, or claimed twice: owner not known.
    Unknown,
}

/// Points that Kubernetes leaves to the CNI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether `ipBlock` matches pod IPs; `None`: not known, such a match makes the side undetermined.
    pub ipblock_matches_pods: Option<bool>,
}

impl Default for Options {
    fn default() -> Self {
        // Kubernetes' own e2e tests require the match (calico#6634).
        Options { ipblock_matches_pods: Some(true) }
    }
}

/// Judges `connection` in both directions, in the shape of the record.
pub fn judge(_index: &Index, _connection: &Connection<'_>, _options: &Options) -> crate::record::Verdict {
    unimplemented!("the verdict helper fills this in")
}
