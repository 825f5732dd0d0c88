use std::collections::HashMap;

use netpol_trace_common::tc::{FlowEvent, TO_POD};

use crate::model::packet::{Headers, SCTP, TCP, UDP};
use crate::pipeline::connections::*;

/// The kernel's side as a test sets it.
#[derive(Default)]
struct Fake {
    entries: HashMap<FlowKey, FlowState>,
    interfaces: Vec<u32>,
}

impl KernelFlows for Fake {
    fn state(&self, key: &FlowKey) -> Option<FlowState> {
        self.entries.get(key).copied()
    }
    fn forget(&mut self, key: &FlowKey) {
        self.entries.remove(key);
    }
    fn keys(&self) -> Vec<FlowKey> {
        self.entries.keys().copied().collect()
    }
    fn interface(&self, index: u32) -> Option<String> {
        self.interfaces.contains(&index).then(|| format!("veth{index}"))
    }
    fn watched_for(&self, index: u32) -> Option<Duration> {
        self.interface(index).map(|_| Duration::from_secs(3600))
    }
    fn addresses(&self, _: u32, _: IpAddr) -> Vec<IpAddr> {
        Vec::new()
    }
    fn netns(&self) -> u32 {
        1
    }
}

struct Node {
    flows: Flows<Fake>,
    start: Instant,
}

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const SERVER: [u8; 4] = [10, 0, 0, 2];

impl Node {
    fn new() -> Node {
        let kernel = Fake { interfaces: vec![1, 2], ..Fake::default() };
        Node { flows: Flows::new(kernel, true), start: Instant::now() }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    /// The client behind interface 1 opens a connection from `port` to the server's port `to`.
    fn opens(&mut self, protocol: u8, port: u16, to: u16) -> FlowKey {
        self.opened(key(protocol, 1, (CLIENT, port), (SERVER, to)), FROM_POD)
    }

    fn opened(&mut self, key: FlowKey, direction: u8) -> FlowKey {
        let state = FlowState { opened: 1, packets: 1, replies: 0, direction: direction.into(), pad: 0 };
        self.flows.kernel.entries.insert(key, state);
        let event = FlowEvent { time: 1, key, event: event::OPENED, direction, icmp: [0; 2], length: 60, pad: 0 };
        self.flows.take(TcEvent::Flow(event), self.start);
        key
    }

    fn unanswered_at(&mut self, seconds: u64) -> Vec<(u16, u64, bool)> {
        let now = self.at(seconds);
        let found = self.flows.unanswered(now);
        found.iter().map(|f| (f.tuple.server.1, f.count, f.delivered)).collect()
    }
}

fn key(protocol: u8, ifindex: u32, pod: ([u8; 4], u16), remote: ([u8; 4], u16)) -> FlowKey {
    let mapped = |ip: [u8; 4]| [0, 0, 0xffffu32.to_be(), u32::from_ne_bytes(ip)];
    FlowKey {
        pod: mapped(pod.0),
        remote: mapped(remote.0),
        pod_port: pod.1.to_be(),
        remote_port: remote.1.to_be(),
        ifindex,
        protocol: protocol.into(),
    }
}

fn dropped(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Packet {
    Packet {
        time: 1,
        headers: Headers {
            sctp_chunk: None,
            quoted: None,
            source: from.0.into(),
            destination: to.0.into(),
            protocol,
            source_port: Some(from.1),
            destination_port: Some(to.1),
            tcp_flags: Some(2),
            icmp: None,
            fragment: false,
            length: 60,
            payload_offset: 40,
        },
        length: 60,
        segments: 1,
        conntrack: None,
        untracked: false,
    }
}

#[test]
fn unanswered_after_the_grace_time() {
    let mut node = Node::new();
    node.opens(TCP, 40000, 80);
    node.opens(SCTP, 40000, 81);
    let answered = node.opens(TCP, 40001, 82);
    node.flows.kernel.entries.remove(&answered);
    assert_eq!(node.unanswered_at(4), []);
    assert_eq!(node.unanswered_at(6), [(80, 1, false), (81, 1, false)]);
    assert_eq!(node.unanswered_at(7), []);
}

#[test]
fn a_drop_or_its_answers_drop_explains_it() {
    let mut node = Node::new();
    node.opens(TCP, 40000, 80);
    node.opens(TCP, 40001, 80);
    let now = node.start;
    node.flows.note_drop(&dropped(TCP, (CLIENT, 40000), (SERVER, 80)), now);
    node.flows.note_drop(&dropped(TCP, (SERVER, 80), (CLIENT, 40001)), now);
    assert_eq!(node.unanswered_at(6), []);
}

#[test]
fn nothing_is_reported_while_drops_may_be_missed() {
    let mut node = Node::new();
    node.opens(TCP, 40000, 80);
    let now = node.start;
    node.flows.note_lost_drops(now);
    assert_eq!(node.unanswered_at(6), []);
    assert_eq!(node.flows.tally, UnansweredTally { unanswered: 0, unanswered_unreported: 1 });
}

#[test]
fn many_tries_are_one_record_and_a_second_with_their_number() {
    let mut node = Node::new();
    for port in 40000..40010 {
        node.opens(TCP, port, 80);
    }
    assert_eq!(node.unanswered_at(6), [(80, 1, false)]);
    assert_eq!(node.unanswered_at(67), [(80, 9, false)]);
    assert_eq!(node.unanswered_at(200), []);
    assert_eq!(node.flows.tally.unanswered, 10);
    assert!(node.flows.kernel.entries.is_empty(), "nothing stays in the kernel");
}

/// Both pods are on this node: the client's side reports the connection, and that its packets arrived.
#[test]
fn one_connection_at_two_interfaces() {
    let mut node = Node::new();
    node.opens(TCP, 40000, 80);
    node.opened(key(TCP, 2, (SERVER, 8080), (CLIENT, 40000)), TO_POD);
    assert_eq!(node.unanswered_at(6), [(80, 1, true)]);
}

#[test]
fn udp_is_reported_only_if_its_opener_is_certain() {
    let mut node = Node::new();
    node.opens(UDP, 40000, 53);
    // A late answer looks like an opening.
    node.opens(UDP, 53, 40001);
    let answered = node.opens(UDP, 40002, 54);
    node.flows.kernel.entries.get_mut(&answered).unwrap().replies = 1;
    assert_eq!(node.unanswered_at(6), [(53, 1, false)]);
    assert!(node.flows.kernel.entries.is_empty(), "flows of one question are forgotten");
}

#[test]
fn udp_in_use_is_kept() {
    let mut node = Node::new();
    let busy = node.opens(UDP, 40000, 443);
    for (seconds, packets) in [(6, 100), (17, 200), (28, 300)] {
        let state = node.flows.kernel.entries.get_mut(&busy).unwrap();
        (state.packets, state.replies) = (packets, packets);
        assert_eq!(node.unanswered_at(seconds), []);
    }
    assert_eq!(node.unanswered_at(39), []);
    assert!(node.flows.kernel.entries.is_empty(), "idle by now");
}

#[test]
fn memory_is_bounded() {
    let mut node = Node::new();
    for i in 0..40_000u32 {
        let [_, a, b, c] = i.to_be_bytes();
        node.opened(key(TCP, 1, (CLIENT, 40000), ([10, a, b, c], 80)), FROM_POD);
    }
    assert!(node.flows.kernel.entries.len() <= crate::kernel::tc::MAX_FLOWS as usize, "what is not kept is forgotten");
    let now = node.start;
    for i in 0..40_000u32 {
        let [_, a, b, c] = i.to_be_bytes();
        node.flows.note_drop(&dropped(TCP, (CLIENT, 1), ([11, a, b, c], 80)), now);
    }
    // A flood of drops was more than is kept: nothing is claimed.
    assert_eq!(node.unanswered_at(6), []);
    assert!(node.flows.tally.unanswered_unreported > 0);
}
