//! A node and its hosts: `pod -- veth -- node -- veth -- server outside`. All is routed, over IPv4 and IPv6. Netkit can replace veth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::nft;
use crate::record::Record;

/// Every host's IPv4 router: the node's address on each of its veths.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const GATEWAY6: &str = "fe80::1";

/// One namespace that routes, and the hosts around it.
#[derive(Debug)]
pub struct Lab {
    node: Netns,
    hosts: BTreeMap<String, Host>,
}

/// A pod or a server outside: its namespace and one address per family.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub netns: Netns,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// The node's end of its pair of devices.
    pub device: String,
}

/// What connects a host with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Veth,
    /// From Linux 6.7.
    Netkit,
}

impl Host {
    /// This host's address of the family of `other`.
    pub fn ip_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() }
    }
}

impl Lab {
    /// Makes a node with these addresses and without hosts.
    pub fn new(name: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<Lab> {
        let node = Netns::new(name)?;
        quiet(&node)?;
        node.sysctl("ipv4/ip_forward", "1")?;
        node.sysctl("ipv6/conf/all/forwarding", "1")?;
        node.ip(&format!("link set lo up\naddr add {ipv4}/32 dev lo\naddr add {ipv6}/128 dev lo nodad\n"))?;
        Ok(Lab { node, hosts: BTreeMap::new() })
    }

    /// Adds a host behind a veth pair of its own.
    pub fn attach(&mut self, name: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<&Host> {
        self.attach_by(Wire::Veth, name, ipv4, ipv6)
    }

    /// Adds a host behind a pair of devices of its own.
    pub fn attach_by(&mut self, wire: Wire, name: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<&Host> {
        let netns = Netns::new(name)?;
        quiet(&netns)?;
        let number = self.hosts.len();
        let path = netns.path();
        let (device, make) = match wire {
            Wire::Veth => (format!("veth{number}"), format!("type veth peer name eth0 netns {path}")),
            // Older versions of `ip` don't know netkit, so the kernel chooses the other end's name.
            Wire::Netkit => (format!("netkit{number}"), format!("type netkit\nlink set nk0 netns {path} name eth0")),
        };
        self.node.ip(&format!(
            "link add {device} {make}\n\
             addr add {GATEWAY}/32 dev {device}\n\
             addr add {GATEWAY6}/64 dev {device} nodad\n\
             link set {device} up\n\
             route add {ipv4}/32 dev {device}\n\
             route add {ipv6}/128 dev {device}\n"
        ))?;
        netns.ip(&format!(
            "link set lo up\n\
             addr add {ipv4}/32 dev eth0\n\
             addr add fe80::2/64 dev eth0 nodad\n\
             addr add {ipv6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {GATEWAY} dev eth0 scope link\n\
             route add default via {GATEWAY} dev eth0\n\
             route add default via {GATEWAY6} dev eth0\n"
        ))?;
        let host = Host { name: name.to_owned(), netns, ipv4, ipv6, device };
        Ok(self.hosts.entry(name.to_owned()).or_insert(host))
    }

    /// Makes a host the node's default route.
    pub fn route_default(&self, name: &str) -> Result<()> {
        let Host { device, ipv4, ipv6, .. } = self.host(name)?;
        self.node.ip(&format!("route add default via {ipv4} dev {device}\nroute add default via {ipv6} dev {device}\n"))
    }

    pub fn node(&self) -> &Netns {
        &self.node
    }

    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| format!("the lab has no host {name}"))
    }

    /// Loads an nftables ruleset on the node.
    pub fn enforce(&self, ruleset: &str) -> Result<()> {
        nft::load(&self.node, ruleset)
    }

    /// True if a record's drop happened in one of this lab's namespaces.
    pub fn owns(&self, record: &Record) -> bool {
        record.netns().is_some_and(|inode| self.inodes().contains(&inode))
    }

    fn inodes(&self) -> BTreeSet<u32> {
        self.hosts.values().map(|host| host.netns.inode()).chain([self.node.inode()]).collect()
    }
}

/// Turns off what the kernel sends by itself: duplicate address detection and router solicitation, and addresses that it makes.
fn quiet(netns: &Netns) -> Result<()> {
    netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
    netns.sysctl("ipv6/conf/default/accept_ra", "0")?;
    netns.sysctl("ipv6/conf/default/addr_gen_mode", "1")
}
