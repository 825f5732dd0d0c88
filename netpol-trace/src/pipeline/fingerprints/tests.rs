use std::collections::BTreeSet;
use std::sync::Arc;

use netpol_trace_common::DropEvent;

use super::*;
use crate::model::Mechanism;
use crate::model::packet::Granularity;
use crate::model::{DropSite, PolicyRelevance, RejectVisibility};
use crate::packet;
use crate::packet::tests::syn;
use crate::pipeline::connections::ConnectionTuple;
use crate::record::{FieldChange, RuleText};

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;

/// An agent on a kernel.
fn agent(kernel: &str) -> Fingerprints {
    Fingerprints { kernel: kernel.to_owned(), cluster: "c".to_owned(), seen: Default::default() }
}

fn facts() -> DropFacts {
    DropFacts {
        reason: Some(Arc::from("NETFILTER_DROP")),
        location: None,
        site: DropSite { mechanism: Mechanism::Nftables, relevance: PolicyRelevance::Likely, hook: None },
        device: Some(Arc::from("veth0")),
        netns: Some(4_026_531_840),
        rejected: false,
        visible_rejects: RejectVisibility::default(),
    }
}

fn fingerprint(agent: &mut Fingerprints, event: DropEvent, packet_count: PacketCount) -> String {
    let facts = facts();
    let origin = Origin { iif: event.iif, netns: facts.netns };
    agent.drop(&packet::decode(&event).unwrap(), &facts, origin, &packet_count).to_string()
}

/// A SYN that the agent's program saw at `time`.
fn one(agent: &mut Fingerprints, time: u64) -> String {
    fingerprint(agent, DropEvent { time, ..syn() }, PacketCount::ONE)
}

const T: u64 = 5_000 * SECOND_NS + 300 * MILLISECOND;

#[test]
fn a_packet_that_two_agents_saw_is_one() {
    let (mut old, mut new, mut elsewhere) = (agent("k"), agent("k"), agent("other"));
    let first = one(&mut old, T);
    assert_eq!(first, one(&mut new, T + 3 * MICROSECOND));
    assert_ne!(first, one(&mut elsewhere, T), "the same addresses on another kernel");
    let other_port = |event: DropEvent| {
        let mut head = event.head;
        head[22..24].copy_from_slice(&81_u16.to_be_bytes());
        DropEvent { head, ..event }
    };
    assert_ne!(first, fingerprint(&mut new, other_port(DropEvent { time: T, ..syn() }), PacketCount::ONE));
    assert_ne!(first, fingerprint(&mut new, DropEvent { time: T, iif: 9, ..syn() }, PacketCount::ONE));
}

/// Also one that only the other agent recorded: it starts anew with every agent.
#[test]
fn a_retransmission_is_another_packet() {
    let (mut old, mut new) = (agent("k"), agent("k"));
    let first = one(&mut old, T);
    assert_ne!(first, one(&mut old, T + SECOND_NS));
    assert_ne!(first, one(&mut new, T + SECOND_NS));
}

#[test]
fn equal_packets_of_one_agent_are_numbered_as_the_others() {
    let (mut old, mut new) = (agent("k"), agent("k"));
    let of = |agent: &mut Fingerprints, late: u64| -> Vec<String> {
        (0..4).map(|n| one(agent, T + n * MILLISECOND + late)).collect()
    };
    let prints = of(&mut old, 0);
    assert_eq!(prints.iter().collect::<BTreeSet<_>>().len(), 4, "{prints:?}");
    assert_eq!(prints, of(&mut new, 2 * MICROSECOND));
}

#[test]
fn counts_are_equal_when_they_count_the_same() {
    let count = |agent: &mut Fingerprints, count: u64, first: u64, last: u64| {
        let granularity = Granularity::Flow;
        let packet_count = PacketCount { first: false, count, bytes: 40 * count, segments: count, last, granularity };
        fingerprint(agent, DropEvent { time: first, ..syn() }, packet_count)
    };
    let (mut old, mut new) = (agent("k"), agent("k"));
    let (first, last) = (T, T + 4 * SECOND_NS);
    let counted = count(&mut old, 7, first, last);
    assert_eq!(counted, count(&mut new, 7, first + 4 * MILLISECOND, last + 4 * MILLISECOND), "to the kernel's tick");
    // The windows of two agents begin at different times: these are other packets, in part.
    assert_ne!(counted, count(&mut new, 6, first, last));
    assert_ne!(counted, count(&mut new, 7, first + SECOND_NS, last + SECOND_NS));
    // A packet that one agent had counted before is a first one for the other.
    let retry = count(&mut old, 1, first + SECOND_NS, first + SECOND_NS);
    assert_eq!(retry, one(&mut new, first + SECOND_NS + MICROSECOND));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut agent = agent("k");
    for second in 0..5 * REMEMBERED as u64 {
        one(&mut agent, second * SECOND_NS);
    }
    assert!(agent.seen.iter().map(HashMap::len).sum::<usize>() <= 2 * REMEMBERED);
}

#[test]
fn a_connection_that_two_nodes_saw_is_one() {
    let finding = |from_pod: bool, port: u16| UnansweredConnection {
        tuple: ConnectionTuple {
            client: ("10.0.0.1".parse().unwrap(), port),
            protocol: 6,
            server: ("10.0.0.2".parse().unwrap(), 80),
        },
        from_pod,
        opened: 1,
        length: 60,
        packets: if from_pod { 3 } else { 2 },
        count: 1,
        device: None,
        delivered: !from_pod,
        sees_drops: true,
    };
    let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
    let (mut client, mut server) = (agent("a"), agent("b"));
    let first = client.unanswered(&finding(true, 40_000), at(100));
    assert_eq!(first, server.unanswered(&finding(false, 40_000), at(103)));
    assert_ne!(first, server.unanswered(&finding(false, 40_001), at(103)));
    assert_ne!(first, client.unanswered(&finding(true, 40_000), at(60_100)));
}

fn edited(before: i64, after: i64) -> PolicyChange {
    PolicyChange {
        namespace: "shop".into(),
        policy: Some("db".into()),
        uid: Some("72eb5833".into()),
        generation_before: Some(before),
        generation: Some(after),
        ..PolicyChange::of(ChangeKind::Edited)
    }
}

/// Three hundred agents learn of it at different times, see other pods, and one missed the version between.
#[test]
fn an_edit_is_one_on_every_node() {
    let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
    let print = |kernel: &str, change: &PolicyChange, seconds| agent(kernel).policy_change(change, at(seconds));
    let first = print("a", &edited(4, 5), 0);
    assert_eq!(first, print("b", &edited(4, 5), 3_700));
    assert_eq!(first, print("c", &edited(3, 5), 0));
    assert_ne!(first, print("a", &edited(5, 6), 0));
    let deleted = PolicyChange { change: ChangeKind::Deleted, generation: None, ..edited(5, 5) };
    assert_ne!(first, print("a", &deleted, 0));
    assert_eq!(print("a", &deleted, 0), print("b", &deleted, 9));
    let another = PolicyChange { uid: Some("f00".into()), ..edited(4, 5) };
    assert_ne!(first, print("a", &another, 0));
}

/// Nothing counts versions of these: what changed, and when, has to do.
#[test]
fn a_change_without_a_generation_is_known_by_its_content() {
    let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
    let labels = |after: &str| PolicyChange {
        namespace: "shop".into(),
        fields: vec![FieldChange {
            field: "metadata.labels[env]".into(),
            before: Some("qa".into()),
            after: Some(after.into()),
        }],
        ..PolicyChange::of(ChangeKind::NamespaceLabels)
    };
    let (mut one, mut two) = (agent("a"), agent("b"));
    let first = one.policy_change(&labels("prod"), at(1));
    assert_eq!(first, two.policy_change(&labels("prod"), at(4)));
    assert_ne!(first, two.policy_change(&labels("dev"), at(4)));
    assert_ne!(first, one.policy_change(&labels("prod"), at(5)), "put back in between, and made again");
    let from_files = |allows: &str| PolicyChange {
        rules_added: vec![RuleText { rule: "ingress[0]".into(), allows: allows.into() }],
        ..edited(1, 1)
    };
    let first = one.policy_change(&from_files("from a"), at(1));
    assert_eq!(first, two.policy_change(&from_files("from a"), at(2)));
    assert_ne!(first, two.policy_change(&from_files("from b"), at(2)));
}
