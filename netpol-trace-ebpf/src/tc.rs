//! Hook 2: tc, on the host's end of pods' interfaces. Sees packets that a pod sends before NAT and policy, and packets that reach the pod
//! after both. Both programs pass every packet on unchanged to the next program.
//!
//! A segment of an established TCP connection, the most frequent case, costs a few loads. Only packets that open or answer a connection
//! need a map look-up.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::TcContext;
use netpol_trace_common::tc::{
    DNS_BYTES, DnsEvent, FROM_POD, FlowCounters, FlowEvent, FlowKey, FlowState, MANY, RECENT, Recent, TO_POD, event,
};

use crate::emit::{self, add};
use crate::headers::{self, ETHERNET, ICMP, ICMPV6, SCTP, TCP, UDP};

/// TCX_NEXT and TC_ACT_UNSPEC: the next program decides.
const NEXT: i32 = -1;
const DNS_PORT: u16 = 53u16.to_be();
/// The header of a DNS message.
const DNS_HEADER: u32 = 12;

/// Unanswered connections, and UDP connections in use. A plain hash map: an LRU map would evict entries without a count.
#[map]
static FLOWS: HashMap<FlowKey, FlowState> = HashMap::with_max_entries(32 * 1024, 0);
/// [`RECENT`] entries for each possible CPU; the loader sets its size. At this hook no run of a program interrupts another one.
#[map]
static RECENTLY: Array<Recent> = Array::with_max_entries(RECENT, 0);
/// Separate from the ring of drops, so that a flood of connections takes no room from drops.
#[map]
static FLOW_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static FLOW_COUNTERS: PerCpuArray<FlowCounters> = PerCpuArray::with_max_entries(1, 0);
/// The time (CLOCK_MONOTONIC, ns) until which new connections are recorded. The agent renews it. A clsact filter outlives a killed
/// agent, and then does nothing.
#[map]
static LEASE: Array<u64> = Array::with_max_entries(1, 0);

/// Adds 1 to a counter. The look-up of the counters is here, so that the most frequent packets, which are not counted, do without it.
macro_rules! count {
    ($field:ident) => {
        if let Some(counters) = FLOW_COUNTERS.get_ptr_mut(0) {
            // SAFETY: a live per-CPU map value; only the address is taken.
            add(unsafe { &raw mut (*counters).$field });
        }
    };
}

/// At the interface's ingress: what the pod sends.
#[classifier]
pub fn netpol_from_pod(ctx: TcContext) -> i32 {
    observe(&ctx, FROM_POD);
    NEXT
}

/// At the interface's egress: what reaches the pod.
#[classifier]
pub fn netpol_to_pod(ctx: TcContext) -> i32 {
    observe(&ctx, TO_POD);
    NEXT
}

#[inline(always)]
fn observe(ctx: &TcContext, direction: u8) {
    if headers::is_established_tcp(ctx) {
        return;
    }
    let (ip, ports) = match headers::plain_udp(ctx) {
        Some((ip, ports)) => (ip, Some(ports)),
        None => match headers::ip(ctx, ETHERNET) {
            headers::Ip::Packet(ip) => (ip, None),
            headers::Ip::Other => return,
            headers::Ip::Unreadable => return count!(unread),
        },
    };
    let packet = TcPacket { ctx, direction, ip, ports };
    match packet.ip.protocol {
        TCP => packet.tcp(),
        UDP => packet.udp(),
        SCTP => packet.sctp(),
        ICMP | ICMPV6 => packet.icmp(),
        _ => {}
    }
}

/// A packet whose IP headers were read.
struct TcPacket<'a> {
    ctx: &'a TcContext,
    direction: u8,
    ip: headers::IpPacket,
    /// Ports of a plain UDP packet.
    ports: Option<[u16; 2]>,
}

impl TcPacket<'_> {
    #[inline(always)]
    fn tcp(&self) {
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        let Some(tcp) = headers::load::<headers::Tcp>(self.ctx, self.ip.transport) else { return self.unread() };
        let key = self.key(tcp.source, tcp.destination);
        if tcp.flags & RST != 0 {
            self.refused(&key, event::RESET, [0; 2]);
        } else if tcp.flags & (SYN | ACK) == SYN {
            self.sent(&key, true, None);
        } else if tcp.flags & SYN != 0 {
            self.answered(&key);
        }
    }

    #[inline(always)]
    fn sctp(&self) {
        const INIT: u8 = 1;
        const INIT_ACK: u8 = 2;
        const ABORT: u8 = 6;
        let Some(sctp) = headers::load::<headers::Sctp>(self.ctx, self.ip.transport) else { return self.unread() };
        let key = self.key(sctp.source, sctp.destination);
        match sctp.chunk {
            INIT => {
                self.sent(&key, true, None);
            }
            INIT_ACK => self.answered(&key),
            ABORT => self.refused(&key, event::RESET, [0; 2]),
            _ => {}
        }
    }

    #[inline(always)]
    fn udp(&self) {
        let ports = self.ports.or_else(|| headers::load::<[u16; 2]>(self.ctx, self.ip.transport));
        let Some([source, destination]) = ports else { return self.unread() };
        let key = self.key(source, destination);
        let recent = self.recent(&key);
        let is_reply = match recent.and_then(|recent| self.count_recent(recent, &key)) {
            Some(is_reply) => is_reply,
            None => self.sent(&key, !headers::is_multicast(&self.ip.destination), recent),
        };
        if is_reply && source == DNS_PORT && self.direction == TO_POD {
            self.dns(&key);
        }
    }

    /// An ICMP error is about the packet that it quotes, which went in the opposite direction.
    #[inline(always)]
    fn icmp(&self) {
        let Some(kind) = headers::load::<[u8; 2]>(self.ctx, self.ip.transport) else { return self.unread() };
        let error = match self.ip.protocol {
            ICMP => matches!(kind[0], 3 | 11 | 12),
            _ => matches!(kind[0], 1..=4),
        };
        if !error {
            return;
        }
        let quoted = match headers::ip(self.ctx, self.ip.transport + 8) {
            headers::Ip::Packet(ip) if matches!(ip.protocol, TCP | UDP | SCTP) => ip,
            _ => return,
        };
        let Some([source, destination]) = headers::load::<[u16; 2]>(self.ctx, quoted.transport) else { return };
        // The error goes to the source of the quoted packet.
        let key = headers::key(self.ctx, self.direction, &quoted.flipped(), destination, source);
        self.refused(&key, event::ICMP, kind);
    }

    #[inline(always)]
    fn key(&self, source: u16, destination: u16) -> FlowKey {
        headers::key(self.ctx, self.direction, &self.ip, source, destination)
    }

    /// This CPU's entry of [`RECENTLY`] for the connection; another connection may be in it.
    #[inline(always)]
    fn recent(&self, key: &FlowKey) -> Option<*mut Recent> {
        let mixed =
            key.pod[3] ^ key.remote[3].rotate_left(8) ^ u32::from(key.pod_port) << 16 ^ u32::from(key.remote_port);
        let at = mixed.wrapping_mul(0x9e37_79b9) >> (32 - RECENT.ilog2());
        RECENTLY.get_ptr_mut(emit::number() * RECENT + at)
    }

    /// Counts a packet of a connection of which this CPU saw a packet in the current tick. Returns whether the packet is a reply; `None` for
    /// another connection or tick.
    #[inline(always)]
    fn count_recent(&self, recent: *mut Recent, key: &FlowKey) -> Option<bool> {
        // SAFETY: a CPU's own map value; and a helper without arguments.
        unsafe {
            if (*recent).key != *key || (*recent).tick != bpf_jiffies64() {
                return None;
            }
            let is_reply = (*recent).direction != self.direction as u32;
            (*recent).packets += u32::from(!is_reply);
            Some(is_reply)
        }
    }

    /// Counts a packet of a connection. The first packet opens the connection if it `may_open` one. Returns whether the packet is a reply.
    #[inline(always)]
    fn sent(&self, key: &FlowKey, may_open: bool, recent: Option<*mut Recent>) -> bool {
        if let Some(state) = FLOWS.get_ptr_mut(key) {
            // SAFETY: live map values, one of them this CPU's own. Plain adds: a lost increment never makes a count zero.
            unsafe {
                let direction = (*state).direction;
                if direction == self.direction as u32 {
                    (*state).packets += 1;
                } else {
                    (*state).replies += 1;
                }
                if let Some(recent) = recent {
                    if (*recent).key == *key {
                        (*state).packets += (*recent).packets;
                    }
                    if (*state).replies > 0 || (*state).packets > MANY {
                        *recent = Recent { tick: bpf_jiffies64(), key: *key, direction, packets: 0, pad: 0 };
                    }
                }
                return direction != self.direction as u32;
            }
        }
        // SAFETY: as above. Drops the count of an earlier connection with the same key.
        if let Some(recent) = recent
            && unsafe { (*recent).key == *key }
        {
            unsafe { (*recent).packets = 0 };
        }
        if may_open {
            self.opened(key);
        }
        false
    }

    #[inline(always)]
    fn opened(&self, key: &FlowKey) {
        let now = now();
        // SAFETY: the value of an array map, which always exists; an aligned word, read once.
        if LEASE.get_ptr(0).is_none_or(|until| unsafe { core::ptr::read_volatile(until) } < now) {
            return;
        }
        count!(opened);
        let state = FlowState { opened: now, packets: 1, replies: 0, direction: self.direction as u32, pad: 0 };
        match FLOWS.insert(key, state, BPF_NOEXIST as u64) {
            Ok(()) => {}
            Err(FULL) => return count!(lost_full),
            Err(_) => return count!(lost_insert),
        }
        if self.report(key, event::OPENED, [0; 2], now) {
            count!(reported);
        } else {
            // The agent does not know the entry and would never remove it. The next packet makes a new one.
            let _ = FLOWS.remove(key);
            count!(lost_ring);
        }
    }

    /// The reply of a handshake: the connection is established, and its entry is removed.
    #[inline(always)]
    fn answered(&self, key: &FlowKey) {
        if self.is_open_from_the_other_side(key) {
            let _ = FLOWS.remove(key);
        }
    }

    #[inline(always)]
    fn refused(&self, key: &FlowKey, event: u8, icmp: [u8; 2]) {
        let Some(state) = FLOWS.get_ptr_mut(key) else { return };
        // SAFETY: a live map value.
        unsafe {
            if (*state).direction == self.direction as u32 {
                return;
            }
            (*state).replies += 1;
            // A UDP connection may be refused many times; only the first refusal is reported.
            if (*state).replies > 1 {
                return;
            }
        }
        count!(answers);
        if !self.report(key, event, icmp, now()) {
            count!(answers_lost);
        }
        if key.protocol != UDP as u32 {
            let _ = FLOWS.remove(key);
        }
    }

    #[inline(always)]
    fn is_open_from_the_other_side(&self, key: &FlowKey) -> bool {
        // SAFETY: a live map value.
        FLOWS.get_ptr(key).is_some_and(|state| unsafe { (*state).direction } != self.direction as u32)
    }

    #[inline(always)]
    fn dns(&self, key: &FlowKey) {
        let at = self.ip.transport + 8;
        let mut length = self.ctx.len().wrapping_sub(at);
        if length as i32 <= DNS_HEADER as i32 {
            return;
        }
        if length > DNS_BYTES as u32 {
            length = DNS_BYTES as u32;
        }
        count!(answers);
        let Some(mut entry) = FLOW_EVENTS.reserve::<DnsEvent>(0) else {
            return count!(answers_lost);
        };
        let record: *mut DnsEvent = entry.as_mut_ptr();
        let head = self.event(key, event::DNS, [0; 2], now());
        // SAFETY: `record` is the reservation, of DnsEvent's size; `length` is at most that of `payload`. The verifier checks
        // both too.
        let copied = unsafe {
            (&raw mut (*record).head).write(head);
            (&raw mut (*record).length).write(length);
            (&raw mut (*record).pad).write(0);
            let payload = (&raw mut (*record).payload).cast();
            bpf_skb_load_bytes(self.ctx.skb.skb.cast(), at, payload, length) == 0
        };
        if !copied {
            entry.discard(0);
            return count!(unread);
        }
        entry.submit(0);
    }

    #[inline(always)]
    fn report(&self, key: &FlowKey, event: u8, icmp: [u8; 2], time: u64) -> bool {
        let Some(mut entry) = FLOW_EVENTS.reserve::<FlowEvent>(0) else { return false };
        entry.write(self.event(key, event, icmp, time));
        entry.submit(0);
        true
    }

    #[inline(always)]
    fn event(&self, key: &FlowKey, event: u8, icmp: [u8; 2], time: u64) -> FlowEvent {
        let length = self.ctx.len().wrapping_sub(ETHERNET);
        FlowEvent { time, key: *key, event, direction: self.direction, icmp, length, pad: 0 }
    }

    #[inline(always)]
    fn unread(&self) {
        count!(unread);
    }
}

/// -E2BIG: the error of a hash map that is full.
const FULL: i32 = -7;

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
