//! Reads IP and transport headers of a packet at a tc hook. Every length is bounded, and every read is checked.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use netpol_trace_common::tc::{FROM_POD, FlowKey};

/// Bytes before the IP header: veth and netkit are Ethernet, and the kernel has already removed VLAN tags from the data.
pub const ETHERNET: u32 = 14;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

const IPV4: u32 = 0x0800u16.to_be() as u32;
const IPV6: u32 = 0x86ddu16.to_be() as u32;
/// Offset and "more fragments" of `frag_off`; a packet with neither is not fragmented.
const FRAGMENT: u16 = 0x3fffu16.to_be();
const FRAGMENT_OFFSET: u16 = 0x1fffu16.to_be();
/// IPv6 extension headers that are read; a packet with more is counted as unread.
const EXTENSIONS: u32 = 6;

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version: u8,
    tos: u8,
    length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6 {
    version: u32,
    length: u16,
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    sequence: u32,
    acknowledged: u32,
    offset: u8,
    pub flags: u8,
    window: u16,
}

/// The common header and the first chunk's type.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sctp {
    pub source: u16,
    pub destination: u16,
    tag: u32,
    checksum: u32,
    pub chunk: u8,
    flags: u8,
    length: u16,
}

/// The fields of the IP headers.
pub struct IpPacket {
    /// IPv4 as IPv4-mapped IPv6.
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub protocol: u8,
    /// Offset of the transport header from the beginning of the packet.
    pub transport: u32,
}

pub enum Ip {
    Packet(IpPacket),
    /// Not IP, or a fragment that has no transport header.
    Other,
    Unreadable,
}

impl IpPacket {
    #[inline(always)]
    pub fn flipped(&self) -> IpPacket {
        IpPacket { source: self.destination, destination: self.source, ..*self }
    }
}

/// Copies `size_of::<T>()` bytes, also from outside the linear part; `None` if the packet is shorter.
#[inline(always)]
pub fn load<T: Copy>(ctx: &TcContext, at: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the target has the size that is passed; on success all of it is set, and T is plain words.
    unsafe {
        let read = bpf_skb_load_bytes(ctx.skb.skb.cast(), at, value.as_mut_ptr().cast(), size_of::<T>() as u32);
        if read == 0 { Some(value.assume_init()) } else { None }
    }
}

/// True for an unfragmented TCP segment that neither opens nor refuses a connection, as nearly all packets are. Reads the packet's own
/// memory; false if the headers are not in the linear part.
#[inline(always)]
pub fn is_established_tcp(ctx: &TcContext) -> bool {
    const OPENS_OR_REFUSES: u8 = 2 | 4;
    let (data, end) = (ctx.data(), ctx.data_end());
    let ip = data + ETHERNET as usize;
    // SAFETY (here and below): each byte lies before `end`; the verifier checks it too.
    let byte = |at: usize| unsafe { *((ip + at) as *const u8) };
    match ethertype(ctx) {
        IPV4 => {
            if ip + 34 > end {
                return false;
            }
            let fragment = unsafe { *((ip + 6) as *const u16) };
            byte(0) == 0x45 && byte(9) == TCP && fragment & FRAGMENT == 0 && byte(33) & OPENS_OR_REFUSES == 0
        }
        IPV6 => {
            if ip + 54 > end {
                return false;
            }
            byte(6) == TCP && byte(53) & OPENS_OR_REFUSES == 0
        }
        _ => false,
    }
}

/// Reads a UDP packet without options, extension headers or fragments in the packet's own memory, the second most frequent kind.
/// `None`: the packet may still be UDP.
#[inline(always)]
pub fn plain_udp(ctx: &TcContext) -> Option<(IpPacket, [u16; 2])> {
    let (data, end) = (ctx.data(), ctx.data_end());
    let ip = data + ETHERNET as usize;
    match ethertype(ctx) {
        IPV4 => {
            if ip + 24 > end {
                return None;
            }
            // SAFETY: both lie before `end`; the verifier checks it too.
            let (header, ports) = unsafe { (*(ip as *const Ipv4), *((ip + 20) as *const [u16; 2])) };
            if header.version != 0x45 || header.protocol != UDP || header.fragment & FRAGMENT != 0 {
                return None;
            }
            let (source, destination) = (mapped(header.source), mapped(header.destination));
            Some((IpPacket { source, destination, protocol: UDP, transport: ETHERNET + 20 }, ports))
        }
        IPV6 => {
            if ip + 44 > end {
                return None;
            }
            // SAFETY: as above.
            let (header, ports) = unsafe { (*(ip as *const Ipv6), *((ip + 40) as *const [u16; 2])) };
            if header.next != UDP {
                return None;
            }
            let (source, destination) = (header.source, header.destination);
            Some((IpPacket { source, destination, protocol: UDP, transport: ETHERNET + 40 }, ports))
        }
        _ => None,
    }
}

#[inline(always)]
fn ethertype(ctx: &TcContext) -> u32 {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: a field of the context.
    unsafe { (*skb).protocol }
}

/// Reads the IP headers that begin at `at`. An ICMP error quotes a packet of its own family, so the EtherType gives the version.
#[inline(always)]
pub fn ip(ctx: &TcContext, at: u32) -> Ip {
    match ethertype(ctx) {
        IPV4 => ipv4(ctx, at),
        IPV6 => ipv6(ctx, at),
        _ => Ip::Other,
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, at: u32) -> Ip {
    let Some(header) = load::<Ipv4>(ctx, at) else { return Ip::Unreadable };
    let length = (header.version & 0x0f) as u32 * 4;
    if header.version >> 4 != 4 || length < 20 {
        return Ip::Unreadable;
    }
    if header.fragment & FRAGMENT_OFFSET != 0 {
        return Ip::Other;
    }
    Ip::Packet(IpPacket {
        source: mapped(header.source),
        destination: mapped(header.destination),
        protocol: header.protocol,
        transport: at + length,
    })
}

#[inline(always)]
fn ipv6(ctx: &TcContext, at: u32) -> Ip {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT_HEADER: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let Some(header) = load::<Ipv6>(ctx, at) else { return Ip::Unreadable };
    let mut next = header.next;
    let mut transport = at + 40;
    let mut walked = 0;
    while walked < EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT_HEADER => {}
            protocol => {
                return Ip::Packet(IpPacket {
                    source: header.source,
                    destination: header.destination,
                    protocol,
                    transport,
                });
            }
        }
        let Some([following, length, high, low]) = load::<[u8; 4]>(ctx, transport) else { return Ip::Unreadable };
        transport += match next {
            FRAGMENT_HEADER if (high, low & 0xf8) != (0, 0) => return Ip::Other,
            FRAGMENT_HEADER => 8,
            AUTHENTICATION => (length as u32 + 2) * 4,
            _ => (length as u32 + 1) * 8,
        };
        next = following;
        walked += 1;
    }
    Ip::Unreadable
}

#[inline(always)]
fn mapped(ipv4: u32) -> [u32; 4] {
    [0, 0, 0xffffu32.to_be(), ipv4]
}

/// True for multicast of either family and IPv4's broadcast: packets to which no answer is expected.
#[inline(always)]
pub fn is_multicast(address: &[u32; 4]) -> bool {
    let first = u32::from_be(address[0]) >> 24;
    let last = u32::from_be(address[3]);
    let is_ipv4 = address[0] == 0 && address[1] == 0 && address[2] == 0xffffu32.to_be();
    if is_ipv4 { last >> 28 == 0xe || last == u32::MAX } else { first == 0xff }
}

/// The key of the connection that a packet in `direction` belongs to.
#[inline(always)]
pub fn key(ctx: &TcContext, direction: u8, ip: &IpPacket, source: u16, destination: u16) -> FlowKey {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: a field of the context.
    let ifindex = unsafe { (*skb).ifindex };
    let protocol = ip.protocol as u32;
    if direction == FROM_POD {
        FlowKey {
            pod: ip.source,
            remote: ip.destination,
            pod_port: source,
            remote_port: destination,
            ifindex,
            protocol,
        }
    } else {
        FlowKey {
            pod: ip.destination,
            remote: ip.source,
            pod_port: destination,
            remote_port: source,
            ifindex,
            protocol,
        }
    }
}
