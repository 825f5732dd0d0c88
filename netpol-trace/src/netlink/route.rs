//! rtnetlink: interfaces and their changes, addresses behind an interface, qdiscs and filters.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{Complete, attribute, put, string, text, word};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// Groups for notifications of links, and of qdiscs with their filters.
pub const RTNLGRP_LINK: u32 = 1;
pub const RTNLGRP_TC: u32 = 4;
/// Sizes in bytes of `struct ifinfomsg`, `struct ifaddrmsg` and `struct tcmsg`.
const IFINFO: usize = 16;
const IFADDR: usize = 8;
const TCMSG: usize = 20;
/// `TCA_KIND`, of qdiscs and filters.
const TCA_KIND: u16 = 1;
/// Parent and handle of the clsact qdisc.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
pub const INGRESS: u32 = 0xffff_fff2;
pub const EGRESS: u32 = 0xffff_fff3;
/// The most interfaces that are read; a node has some hundreds of pods.
const MAX_LINKS: usize = 16_384;

/// An interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `netkit`, `bridge`, …; empty for physical ones.
    pub kind: String,
    /// The peer's index, in its own network namespace.
    pub peer: Option<u32>,
    /// This namespace's id for the peer's network namespace, if that is another one.
    pub peer_netns: Option<i32>,
    pub xdp: Option<Xdp>,
}

/// How an XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xdp {
    /// In the driver: a dropped packet never becomes an skb, except on veth.
    Native,
    /// On skbs.
    Generic,
    /// In the hardware.
    Offload,
}

impl Link {
    /// True for the host's end of a pod's interface: a pair whose other end is in another network namespace. It may be a bridge port.
    pub fn is_pods(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit") && self.peer_netns.is_some()
    }
}

/// A change of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// A new or changed interface.
    Is(Link),
    /// The index of a removed interface.
    Gone(u32),
}

/// A tc filter of an interface's clsact qdisc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcFilter {
    pub priority: u16,
    pub handle: u32,
    /// `bpf`, `flower`, …
    pub kind: String,
    /// A BPF filter's name: `object.o:[section]` or the program's.
    pub name: String,
}

/// Requests a dump and reads its responses of one type.
fn dump<T>(
    request: u16,
    body: &[u8],
    response: u16,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<(Vec<T>, Complete)> {
    let mut found = Vec::new();
    let complete = super::dump(NETLINK_ROUTE, request, body, |kind, body| {
        if kind == response && found.len() < MAX_LINKS {
            found.extend(read(body));
        }
    })?;
    Ok((found, complete))
}

/// All interfaces of this network namespace.
pub fn links() -> io::Result<Vec<Link>> {
    super::consistent(|| dump(RTM_GETLINK, &[0; IFINFO], RTM_NEWLINK, link))
}

/// The addresses of interface `peer` in the network namespace with the id `netns`.
///
/// # Errors
/// CAP_NET_ADMIN in that namespace is missing.
pub fn addresses(netns: i32, peer: Option<u32>) -> io::Result<Vec<IpAddr>> {
    const IFA_TARGET_NETNSID: u16 = 10;
    let mut request = vec![0; IFADDR];
    put(&mut request, IFA_TARGET_NETNSID, &netns.to_ne_bytes());
    Ok(dump(RTM_GETADDR, &request, RTM_NEWADDR, |body| address(body, peer))?.0)
}

/// The interface on which kube-proxy's IPVS mode puts the addresses of all services.
const IPVS: &str = "kube-ipvs0";

/// The addresses of this network namespace, except those of services.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let ipvs = links()?.into_iter().find(|link| link.name == IPVS).map(|link| link.index);
    let own = |body: &[u8]| if ipvs.is_some() && word(body, 4) == ipvs { None } else { address(body, None) };
    super::consistent(|| dump(RTM_GETADDR, &[0; IFADDR], RTM_NEWADDR, own))
}

/// Indexes of the interfaces with a clsact qdisc.
pub fn clsact() -> io::Result<Vec<u32>> {
    Ok(dump(RTM_GETQDISC, &tcmsg(0, 0, 0), RTM_NEWQDISC, clsact_on)?.0)
}

/// The filters at `parent` ([`INGRESS`] or [`EGRESS`]) of an interface; none without a clsact qdisc.
pub fn filters(index: u32, parent: u32) -> io::Result<Vec<TcFilter>> {
    Ok(dump(RTM_GETTFILTER, &tcmsg(index, 0, parent), RTM_NEWTFILTER, filter)?.0)
}

pub fn remove_clsact(index: u32) -> io::Result<()> {
    super::request(NETLINK_ROUTE, RTM_DELQDISC, &tcmsg(index, CLSACT_HANDLE, CLSACT))
}

/// Receives notifications of changes of interfaces.
pub struct LinkMonitor {
    socket: Socket,
    datagram: Vec<u8>,
}

impl LinkMonitor {
    pub fn new() -> io::Result<LinkMonitor> {
        let socket = super::listen(NETLINK_ROUTE, &[RTNLGRP_LINK])?;
        Ok(LinkMonitor { socket, datagram: Vec::with_capacity(super::DATAGRAM) })
    }

    /// The changes since the last call.
    ///
    /// # Errors
    /// ENOBUFS if some were lost: list the interfaces with [`links`].
    pub fn changes(&mut self) -> io::Result<Vec<LinkChange>> {
        let mut changes = Vec::new();
        loop {
            match super::receive(&self.socket, &mut self.datagram) {
                Ok(()) => {
                    let mut take = |kind, body: &[u8]| changes.extend(change(kind, body));
                    super::read(&self.datagram, &mut Complete(true), &mut take)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changes),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for LinkMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn change(kind: u16, body: &[u8]) -> Option<LinkChange> {
    match kind {
        // A port that leaves its bridge causes a DELLINK of family AF_BRIDGE; the interface stays.
        RTM_NEWLINK if body.first() == Some(&0) => link(body).map(LinkChange::Is),
        RTM_DELLINK if body.first() == Some(&0) => word(body, 4).map(LinkChange::Gone),
        _ => None,
    }
}

fn link(body: &[u8]) -> Option<Link> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINK: u16 = 5;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_LINK_NETNSID: u16 = 37;
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_ATTACHED: u16 = 2;
    let attributes = body.get(IFINFO..)?;
    let attached = attribute(attributes, IFLA_XDP).and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED)?.first().copied());
    Some(Link {
        index: word(body, 4)?,
        name: string(attributes, IFLA_IFNAME)?,
        kind: attribute(attributes, IFLA_LINKINFO).and_then(|info| string(info, IFLA_INFO_KIND)).unwrap_or_default(),
        peer: attribute(attributes, IFLA_LINK).and_then(|value| word(value, 0)),
        peer_netns: attribute(attributes, IFLA_LINK_NETNSID).and_then(|value| word(value, 0)).map(u32::cast_signed),
        xdp: attached.and_then(|mode| match mode {
            0 => None,
            2 => Some(Xdp::Generic),
            3 => Some(Xdp::Offload),
            // 1; 4 for several modes at once.
            _ => Some(Xdp::Native),
        }),
    })
}

fn address(body: &[u8], of: Option<u32>) -> Option<IpAddr> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    if of.is_some_and(|index| word(body, 4) != Some(index)) {
        return None;
    }
    let attributes = body.get(IFADDR..)?;
    let value = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|bytes| Ipv6Addr::from(bytes).into())
}

fn clsact_on(body: &[u8]) -> Option<u32> {
    (string(body.get(TCMSG..)?, TCA_KIND)? == "clsact").then_some(word(body, 4)?)
}

fn filter(body: &[u8]) -> Option<TcFilter> {
    const TCA_OPTIONS: u16 = 2;
    const TCA_BPF_NAME: u16 = 7;
    let attributes = body.get(TCMSG..)?;
    let kind = string(attributes, TCA_KIND)?;
    // The kernel also reports each priority by itself, with handle 0.
    let handle = word(body, 8).filter(|handle| *handle != 0)?;
    let name = attribute(attributes, TCA_OPTIONS).filter(|_| kind == "bpf").and_then(|o| attribute(o, TCA_BPF_NAME));
    let name = name.map(text).unwrap_or_default();
    Some(TcFilter { priority: (word(body, 16)? >> 16) as u16, handle, kind, name })
}

/// `struct tcmsg`, of any family.
fn tcmsg(index: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let mut message = [0; TCMSG];
    for (at, value) in [(4, index), (8, handle), (12, parent)] {
        message[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_veth_whose_peer_is_elsewhere_is_a_pods() {
        let mut body = vec![0; IFINFO];
        body[4] = 7;
        put(&mut body, 3, b"veth1\0");
        put(&mut body, 5, &2u32.to_ne_bytes());
        let mut info = Vec::new();
        put(&mut info, 1, b"veth\0");
        put(&mut body, 18, &info);
        assert!(!link(&body).unwrap().is_pods());
        put(&mut body, 37, &0i32.to_ne_bytes());
        let mut xdp = Vec::new();
        put(&mut xdp, 2, &[1]);
        put(&mut body, 43, &xdp);
        let found = link(&body).unwrap();
        assert!(found.is_pods());
        assert_eq!((found.index, found.peer, found.peer_netns), (7, Some(2), Some(0)));
        assert_eq!(found.xdp, Some(Xdp::Native));
        assert_eq!(change(RTM_NEWLINK, &body), Some(LinkChange::Is(found)));
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
            let _ = (link(&bytes), address(&bytes, None), filter(&bytes), clsact_on(&bytes), change(RTM_NEWLINK, &bytes));
        }
    }
}
