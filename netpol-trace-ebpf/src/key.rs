//! Reads the key under which a packet is counted from the packet's headers.

use netpol_trace_common::aggregate::{self, AggregateKey, WORDS, shift};

use crate::drop::{self, Memory, Skb};

/// What a packet adds to its flow's count.
pub struct Measure {
    pub bytes: u32,
    pub segments: u32,
}

/// Reads a word of the key in place: without this the compiler would keep a second copy of the key on the stack, which has 512 bytes.
#[inline(always)]
pub fn word(key: &AggregateKey, at: usize) -> u64 {
    // SAFETY: a live reference.
    unsafe { core::ptr::read_volatile(&raw const key.words[at]) }
}

const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// True if packets of this flow are counted.
#[inline(always)]
pub fn is_aggregated(key: &AggregateKey) -> bool {
    key.kind() != aggregate::NOT_AGGREGATED
}

/// The part of a key that comes from the packet's headers.
struct FlowFields {
    kind: u8,
    protocol: u8,
    /// The lower half of the word of ports: the ports as in the packet.
    ports: u64,
    tcp_flags: u8,
    bytes: u32,
}

/// Writes the key of the packet's flow. The key's kind stays [`aggregate::NOT_AGGREGATED`] for a packet with options or extension
/// headers, without a network namespace, or whose transport header lies beyond the linear part: reading those costs too much.
#[inline(always)]
pub fn read<M: Memory>(key: &mut AggregateKey, skb: &Skb, location: u64, reason: u32, extra: u8) -> Measure {
    let head = M::open(skb.head, skb.network_header);
    let unknown = Measure { bytes: skb.len, segments: 1 };
    let tracked = skb.conntrack() != 0;
    let mut original_ports = 0;
    let flow = if skb.protocol == ETH_P_IP {
        let Some(flow) = ipv4::<M>(&head, skb) else { return unknown };
        key.words[5] = M::get(&head, 12);
        if tracked {
            let [a, _, c, _, e] = tuple(key, skb);
            key.words[6] = a & 0xffff_ffff | c & !0xffff_ffff;
            original_ports = ports(c, e);
            let mut i = 8;
            while i < WORDS {
                key.words[i] = 0;
                i += 1;
            }
        }
        flow
    } else if skb.protocol == ETH_P_IPV6 {
        let Some(flow) = ipv6::<M>(&head, skb) else { return unknown };
        if tracked {
            let [a, b, c, d, e] = tuple(key, skb);
            key.words[9] = a;
            key.words[10] = b;
            key.words[11] = c >> 32 | d << 32;
            key.words[12] = d >> 32 | e << 32;
            original_ports = ports(c, e);
        }
        let mut i = 0;
        while i < 4 {
            key.words[5 + i] = M::get(&head, 8 + 8 * i as u32);
            i += 1;
        }
        flow
    } else {
        return unknown;
    };
    if skb.netns == 0 {
        return unknown;
    }
    key.words[0] = u64::from(reason) | u64::from(skb.ifindex) << 32;
    key.words[1] = location;
    key.words[2] = u64::from(skb.iif) | u64::from(skb.netns) << 32;
    key.words[3] = u64::from(flow.protocol)
        | u64::from(flow.tcp_flags & aggregate::TCP_FLAGS) << shift::TCP_FLAGS
        | (skb.nfct & 7) << shift::CTINFO
        | u64::from(flow.kind) << shift::KIND
        | u64::from(extra) << shift::FLAGS;
    key.words[4] = original_ports | flow.ports;
    Measure { bytes: flow.bytes, segments: drop::segments::<M>(skb) }
}

/// Copies conntrack's original tuple into the last words of the key and returns it. The key serves as buffer because the stack has 512
/// bytes.
#[inline(always)]
fn tuple(key: &mut AggregateKey, skb: &Skb) -> [u64; 5] {
    skb.tuple((&raw mut key.words[WORDS - 5]).cast());
    [word(key, 8), word(key, 9), word(key, 10), word(key, 11), word(key, 12)]
}

/// The upper half of the word of ports, from the words of the conntrack tuple that contain them.
#[inline(always)]
fn ports(source: u64, destination: u64) -> u64 {
    (source & 0xffff) << 32 | (destination >> 32 & 0xffff) << 48
}

#[inline(always)]
fn ipv4<M: Memory>(head: &M::Head, skb: &Skb) -> Option<FlowFields> {
    // Version, header length, type of service and packet length, in memory order.
    let first: u32 = M::get(head, 0);
    if first as u8 != 0x45 {
        return None;
    }
    let length = u16::from_be((first >> 16) as u16);
    let bytes = if length != 0 { u32::from(length) } else { skb.len };
    let protocol: u8 = M::get(head, 9);
    // Fragments other than the first have no transport header.
    if u16::from_be(M::get(head, 6)) & 0x1fff != 0 {
        return Some(FlowFields { kind: aggregate::V4 | aggregate::FRAGMENT, protocol, ports: 0, tcp_flags: 0, bytes });
    }
    transport::<M, 20>(head, skb, FlowFields { kind: aggregate::V4, protocol, ports: 0, tcp_flags: 0, bytes })
}

#[inline(always)]
fn ipv6<M: Memory>(head: &M::Head, skb: &Skb) -> Option<FlowFields> {
    let protocol: u8 = M::get(head, 6);
    if !matches!(protocol, TCP | UDP | ICMPV6 | SCTP) {
        return None;
    }
    let length = u16::from_be(M::get(head, 4));
    let bytes = if length != 0 { u32::from(length) + 40 } else { skb.len };
    transport::<M, 40>(head, skb, FlowFields { kind: aggregate::V6, protocol, ports: 0, tcp_flags: 0, bytes })
}

/// Ports and flags, from the transport header at `AT`.
#[inline(always)]
fn transport<M: Memory, const AT: u32>(head: &M::Head, skb: &Skb, mut flow: FlowFields) -> Option<FlowFields> {
    let needed = if flow.protocol == TCP { 14 } else { 8 };
    if u32::from(skb.network_header) + AT + needed > skb.tail {
        return None;
    }
    flow.ports = u64::from(M::get::<u32>(head, AT));
    if flow.protocol == TCP {
        flow.tcp_flags = M::get(head, AT + 13);
    } else if matches!(flow.protocol, ICMP | ICMPV6) {
        // Packets of a flow differ in the checksum but not in the identifier.
        flow.ports = flow.ports & 0xffff | u64::from(M::get::<u16>(head, AT + 4)) << 16;
    }
    Some(flow)
}
