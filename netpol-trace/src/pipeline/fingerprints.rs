//! Fingerprints: records of two agents about the same packet, connection or policy change get the same one.
//!
//! Two agents see the same packets when their nodes share a kernel (kind), and while one agent takes over from the other. Their programs run
//! one after the other on the same packet, so all of the kernel's evidence is equal except the time, which differs by some microseconds, and
//! for counted packets by up to a tick. The fingerprint therefore uses the second of the kernel's clock. Equal packets within one second are
//! numbered; agents that saw all of them use the same numbers.

use std::collections::HashMap;
use std::fs;

use foldhash::fast::RandomState;
use jiff::Timestamp;
use netpol_trace_common::aggregate::TCP_FLAGS;

use crate::model::ChangeKind;
use crate::model::DropFacts;
use crate::model::packet::{Packet, PacketCount};
use crate::pipeline::connections::{Origin, UnansweredConnection};
use crate::record::fingerprint::FingerprintHasher;
use crate::record::{Fingerprint, PolicyChange};

/// Identifies the running kernel: equal in all of its containers, new with each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const SECOND_NS: u64 = 1_000_000_000;
/// Width of the time window that identifies an unanswered connection on two nodes' wall clocks.
const CONNECTION_SECONDS: i64 = 10;
/// Width of the time window that identifies a policy change: agents learn of it within seconds of each other.
const CHANGE_SECONDS: i64 = 60;
/// Fingerprints kept in each of two generations.
const REMEMBERED: usize = 1 << 14;

/// Makes the fingerprints of one agent's records.
#[derive(Debug)]
pub struct Fingerprints {
    /// The kernel's boot id. Only records of the same kernel can be about the same packet. The id is secret, so a fingerprint reveals no
    /// addresses.
    kernel: String,
    /// The cluster's name in records, or empty.
    cluster: String,
    /// Number of times that each fingerprint occurred; it distinguishes equal packets within a second.
    seen: [HashMap<Fingerprint, u64, RandomState>; 2],
}

impl Fingerprints {
    /// `run` replaces the boot id where that cannot be read; then no two agents' fingerprints of a packet are equal.
    pub fn new(cluster: Option<&str>, run: &str) -> Fingerprints {
        let kernel = fs::read_to_string(BOOT_ID).inspect_err(|error| {
            tracing::debug!(%error, "{BOOT_ID}: records of other agents about the same packets get other fingerprints");
        });
        let kernel = kernel.unwrap_or_else(|_| run.to_owned());
        Fingerprints {
            kernel: kernel.trim().to_owned(),
            cluster: cluster.unwrap_or_default().to_owned(),
            seen: Default::default(),
        }
    }

    /// Returns the fingerprint of one packet, or of the counted packets of one flow. It uses only evidence of the kernel, so agents of other
    /// versions, or with other rights and options, compute the same value.
    pub fn drop(
        &mut self,
        packet: &Packet,
        facts: &DropFacts,
        origin: Origin,
        packet_count: &PacketCount,
    ) -> Fingerprint {
        let headers = &packet.headers;
        let port = |port: Option<u16>| port.map_or(u64::MAX, u64::from);
        let (icmp_type, icmp_code) = headers.icmp.unwrap_or_default();
        let hash = FingerprintHasher::new("drop")
            .text(&self.kernel)
            .number(facts.netns.unwrap_or_default().into())
            .number(origin.iif.into())
            .maybe(facts.device.as_deref())
            .maybe(facts.reason.as_deref())
            .address(headers.source)
            .address(headers.destination)
            .number(headers.protocol.into())
            .number(port(headers.source_port))
            .number(port(headers.destination_port))
            // Counted packets keep these flags only.
            .number((headers.tcp_flags.unwrap_or_default() & TCP_FLAGS).into())
            .number(u64::from(icmp_type) << 8 | u64::from(icmp_code))
            .number(headers.fragment.into())
            .number(packet_count.packets())
            .number(packet_count.bytes(packet))
            .number(packet.time / SECOND_NS)
            .number(packet_count.last.max(packet.time) / SECOND_NS);
        self.nth(hash.finish())
    }

    /// Returns the fingerprint of an unanswered connection, which two nodes may have seen.
    pub fn unanswered(&mut self, finding: &UnansweredConnection, opened: Timestamp) -> Fingerprint {
        let (client, server) = (finding.tuple.client, finding.tuple.server);
        let hash = FingerprintHasher::new("unanswered")
            .text(&self.cluster)
            .address(client.0)
            .number(client.1.into())
            .address(server.0)
            .number(server.1.into())
            .number(finding.tuple.protocol.into())
            .number(finding.count)
            .number(opened.as_second().div_euclid(CONNECTION_SECONDS).unsigned_abs());
        self.nth(hash.finish())
    }

    /// Returns the fingerprint of a policy change, of which every agent has a record: uid and generation of the object. A change without a new
    /// generation (a namespace's labels, policies from files) is identified by its content and the minute in which the agent learned of it.
    pub fn policy_change(&mut self, change: &PolicyChange, at: Timestamp) -> Fingerprint {
        let hash = FingerprintHasher::new("policy_change")
            .number(change.change as u64)
            .text(&change.namespace)
            .maybe(change.policy.as_deref())
            .maybe(change.uid.as_deref());
        let version = match change.change {
            // This happens once in the life of an object.
            ChangeKind::Created | ChangeKind::Deleted => Some(0),
            ChangeKind::Edited => change.generation.filter(|new| change.generation_before != Some(*new)),
            ChangeKind::NamespaceLabels => None,
        };
        if let (Some(version), true) = (version, change.uid.is_some()) {
            return hash.number(version.unsigned_abs()).finish();
        }
        let mut hash = hash
            .text(&self.cluster)
            .number(at.as_second().div_euclid(CHANGE_SECONDS).unsigned_abs())
            .number(change.rules_removed.len() as u64);
        for rule in change.rules_removed.iter().chain(&change.rules_added) {
            hash = hash.text(&rule.rule).text(&rule.allows);
        }
        for field in &change.fields {
            hash = hash.text(&field.field).maybe(field.before.as_deref()).maybe(field.after.as_deref());
        }
        self.nth(hash.finish())
    }

    /// Returns `fingerprint` at its first occurrence and a numbered one at each later occurrence.
    fn nth(&mut self, fingerprint: Fingerprint) -> Fingerprint {
        let [newest, before] = &mut self.seen;
        if newest.len() >= REMEMBERED {
            std::mem::swap(newest, before);
            newest.clear();
        }
        let times = newest.entry(fingerprint).or_insert_with(|| before.remove(&fingerprint).unwrap_or_default());
        *times += 1;
        if *times == 1 { fingerprint } else { fingerprint.repeated(*times - 1) }
    }
}

#[cfg(test)]
mod tests;
