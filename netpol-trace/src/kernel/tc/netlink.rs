//! The rtnetlink messages that the tc hook needs: interfaces and their changes, addresses behind an interface, tc filters.
//!
//! Only the attributes in use are read, by hand: a decoder of all of them fails on what a newer kernel adds.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const RTNLGRP_LINK: u32 = 1;
/// Octets of `struct ifinfomsg`, `struct ifaddrmsg` and `struct tcmsg`.
const IFINFO: usize = 16;
const IFADDR: usize = 8;
const TCMSG: usize = 20;
/// Handle and parent of the clsact qdisc: it is both.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
pub const INGRESS: u32 = 0xffff_fff2;
pub const EGRESS: u32 = 0xffff_fff3;

/// An interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `netkit`, `bridge`, …; empty for physical ones.
    pub kind: String,
    /// The peer's index, in its own network namespace.
    pub peer: Option<u32>,
    /// Our number for the peer's network namespace, where that is another one.
    pub peer_netns: Option<i32>,
}

impl Link {
    /// The host's end of a pod's interface: a pair whose other end is in another network namespace. Ports of a bridge too.
    pub fn is_pods(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit") && self.peer_netns.is_some()
    }
}

/// A change of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is there, new or changed.
    Is(Link),
    Gone(u32),
}

/// A tc filter of an interface's clsact qdisc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub priority: u16,
    pub handle: u32,
    /// `bpf`, `flower`, …
    pub kind: String,
    /// A BPF filter's name.
    pub name: String,
}

/// All interfaces of this network namespace.
pub fn links() -> io::Result<Vec<Link>> {
    Ok(dump(RTM_GETLINK, &[0; IFINFO], RTM_NEWLINK)?.iter().filter_map(|body| link(body)).collect())
}

/// The addresses of interface `peer` in the network namespace `netns` (our number for it).
///
/// # Errors
/// The kernel wants CAP_NET_ADMIN there.
pub fn addresses(netns: i32, peer: Option<u32>) -> io::Result<Vec<IpAddr>> {
    const IFA_TARGET_NETNSID: u16 = 10;
    let mut request = vec![0; IFADDR];
    attribute(&mut request, IFA_TARGET_NETNSID, &netns.to_ne_bytes());
    let found = dump(RTM_GETADDR, &request, RTM_NEWADDR)?;
    Ok(found.iter().filter_map(|body| address(body, peer)).collect())
}

/// The filters at `parent` ([`INGRESS`] or [`EGRESS`]) of an interface; none without a clsact qdisc.
pub fn filters(index: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let found = dump(RTM_GETTFILTER, &tcmsg(index, 0, parent), RTM_NEWTFILTER)?;
    Ok(found.iter().filter_map(|body| filter(body)).collect())
}

pub fn remove_clsact(index: u32) -> io::Result<()> {
    let mut socket = open()?;
    send(&mut socket, RTM_DELQDISC, NLM_F_REQUEST | NLM_F_ACK, &tcmsg(index, CLSACT_HANDLE, CLSACT))?;
    let (datagram, _) = socket.recv_from_full()?;
    read(&datagram, |_, _| ()).map(drop)
}

/// Tells of every change of an interface from now on.
pub struct Follow(Socket);

impl Follow {
    pub fn new() -> io::Result<Follow> {
        let socket = open()?;
        socket.add_membership(RTNLGRP_LINK)?;
        socket.set_non_blocking(true)?;
        Ok(Follow(socket))
    }

    /// The changes since the last call.
    ///
    /// # Errors
    /// ENOBUFS when some were lost: take stock anew with [`links`].
    pub fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        loop {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => {
                    read(&datagram, |kind, body| changes.extend(change(kind, body)))?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changes),
                Err(error) => return Err(error),
            }
        }
    }
}

impl std::os::fd::AsRawFd for Follow {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    // Without it the kernel ignores most of what a dump asks for. Since 4.20.
    socket.set_netlink_get_strict_chk(true)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn send(socket: &mut Socket, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    socket.send(&message, 0).map(drop)
}

fn dump(request: u16, body: &[u8], answer: u16) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = open()?;
    send(&mut socket, request, NLM_F_REQUEST | NLM_F_DUMP, body)?;
    let mut bodies = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let keep = |kind, body: &[u8]| {
            if kind == answer {
                bodies.push(body.to_vec());
            }
        };
        if read(&datagram, keep)? {
            return Ok(bodies);
        }
    }
}

/// Hands each message of a datagram to `take`; true at the end of a dump or at an acknowledgement.
fn read(mut datagram: &[u8], mut take: impl FnMut(u16, &[u8])) -> io::Result<bool> {
    while let Some((header, rest)) = datagram.split_at_checked(16) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = length.checked_sub(16).and_then(|length| rest.get(..length));
        let Some(body) = body else { return Err(io::ErrorKind::InvalidData.into()) };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) };
            }
            _ => take(kind, body),
        }
        datagram = rest.get(body.len().next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn change(kind: u16, body: &[u8]) -> Option<Change> {
    match kind {
        // A port that leaves its bridge is a DELLINK of family AF_BRIDGE; the interface stays.
        RTM_NEWLINK if body.first() == Some(&0) => link(body).map(Change::Is),
        RTM_DELLINK if body.first() == Some(&0) => word(body, 4).map(Change::Gone),
        _ => None,
    }
}

fn link(body: &[u8]) -> Option<Link> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINK: u16 = 5;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_LINK_NETNSID: u16 = 37;
    let attributes = body.get(IFINFO..)?;
    Some(Link {
        index: word(body, 4)?,
        name: text(attributes, IFLA_IFNAME)?,
        kind: find(attributes, IFLA_LINKINFO).and_then(|info| text(info, IFLA_INFO_KIND)).unwrap_or_default(),
        peer: find(attributes, IFLA_LINK).and_then(|value| word(value, 0)),
        peer_netns: find(attributes, IFLA_LINK_NETNSID).and_then(|value| word(value, 0)).map(u32::cast_signed),
    })
}

fn address(body: &[u8], of: Option<u32>) -> Option<IpAddr> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    if of.is_some_and(|index| word(body, 4) != Some(index)) {
        return None;
    }
    let attributes = body.get(IFADDR..)?;
    let value = find(attributes, IFA_LOCAL).or_else(|| find(attributes, IFA_ADDRESS))?;
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into())
}

fn filter(body: &[u8]) -> Option<Filter> {
    const TCA_KIND: u16 = 1;
    const TCA_OPTIONS: u16 = 2;
    const TCA_BPF_NAME: u16 = 7;
    let attributes = body.get(TCMSG..)?;
    let kind = text(attributes, TCA_KIND)?;
    // A priority is announced by itself too, with handle 0.
    let handle = word(body, 8).filter(|handle| *handle != 0)?;
    let options = find(attributes, TCA_OPTIONS).unwrap_or_default();
    let name = if kind == "bpf" { text(options, TCA_BPF_NAME).unwrap_or_default() } else { String::new() };
    Some(Filter { priority: (word(body, 16)? >> 16) as u16, handle, kind, name })
}

/// `struct tcmsg`, of any family.
fn tcmsg(index: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let mut message = [0; TCMSG];
    for (at, value) in [(4, index), (8, handle), (12, parent)] {
        message[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    message
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The value of the first attribute of type `wanted`.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (header, _) = attributes.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The two upper bits say "nested" and "network order".
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn text(attributes: &[u8], wanted: u16) -> Option<String> {
    let value = find(attributes, wanted)?;
    Some(String::from_utf8_lossy(value.split(|octet| *octet == 0).next().unwrap_or_default()).into_owned())
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend((4 + value.len() as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_veth_whose_peer_is_elsewhere_is_a_pods() {
        let mut body = vec![0; IFINFO];
        body[4] = 7;
        attribute(&mut body, 3, b"veth1\0");
        attribute(&mut body, 5, &2u32.to_ne_bytes());
        let mut info = Vec::new();
        attribute(&mut info, 1, b"veth\0");
        attribute(&mut body, 18, &info);
        assert!(!link(&body).unwrap().is_pods());
        attribute(&mut body, 37, &0i32.to_ne_bytes());
        let found = link(&body).unwrap();
        assert!(found.is_pods());
        assert_eq!((found.index, found.peer, found.peer_netns), (7, Some(2), Some(0)));
        assert_eq!(change(RTM_NEWLINK, &body), Some(Change::Is(found)));
        body[0] = 7;
        assert_eq!(change(RTM_DELLINK, &body), None, "a port left its bridge");
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let found = links().unwrap();
        assert!(found.iter().any(|link| link.name == "lo" && !link.is_pods()), "{found:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, |kind, body| drop(change(kind, body)));
            let _ = (link(&bytes), address(&bytes, None), filter(&bytes));
        }
    }
}
