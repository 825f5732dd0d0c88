//! The pod network: the addresses that pods have, or may get.
//!
//! `spec.podCIDR` is absent on EKS and OVN-Kubernetes, and set but unused with Calico's and Cilium's own address management. So the pod
//! network is learned from the pods' addresses. What the nodes declare is added: a new pod's prefix is then known before its first pod.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::HashMap;

/// Length of the prefix that the address of one pod stands for. CNIs give a node blocks of /24 to /28 in IPv4, and of /64 to /122 in IPv6.
const LEARNED_IPV4: u8 = 24;
const LEARNED_IPV6: u8 = 64;

/// Prefixes, each with the number of objects that it comes from.
#[derive(Debug, Clone, Default)]
pub(in crate::cluster) struct PodNetwork {
    declared: HashMap<IpNet, u32>,
    learned: HashMap<IpNet, u32>,
}

impl PodNetwork {
    /// Adds a prefix of a Node object.
    pub fn declare(&mut self, prefix: IpNet) {
        *self.declared.entry(prefix.trunc()).or_default() += 1;
    }

    pub fn withdraw(&mut self, prefix: IpNet) {
        decrement(&mut self.declared, prefix.trunc());
    }

    /// Adds the address of a pod that has a network namespace of its own.
    pub fn learn(&mut self, ip: IpAddr) {
        *self.learned.entry(learned_prefix(ip)).or_default() += 1;
    }

    pub fn unlearn(&mut self, ip: IpAddr) {
        decrement(&mut self.learned, learned_prefix(ip));
    }

    /// Returns true if `ip` is in a declared prefix, or in or next to the prefix of a pod's address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.is_declared(ip) || self.is_near_a_pod(ip)
    }

    /// Returns true if the declared prefixes hold every pod's address: then an address outside of them is not a pod's.
    pub fn is_declared_in_full(&self) -> bool {
        !self.declared.is_empty() && self.learned.keys().all(|prefix| self.is_declared(prefix.addr()))
    }

    fn is_declared(&self, ip: IpAddr) -> bool {
        let lengths = 0..=if ip.is_ipv4() { 32 } else { 128 };
        // One look per prefix length costs the same for one node and for ten thousand.
        let mut networks = lengths.filter_map(|length| IpNet::new(ip, length).ok());
        !self.declared.is_empty() && networks.any(|net| self.declared.contains_key(&net.trunc()))
    }

    fn is_near_a_pod(&self, ip: IpAddr) -> bool {
        !self.learned.is_empty() && neighbours(ip).iter().any(|prefix| self.learned.contains_key(prefix))
    }
}

fn decrement(prefixes: &mut HashMap<IpNet, u32>, prefix: IpNet) {
    if let Some(count) = prefixes.get_mut(&prefix) {
        *count -= 1;
        if *count == 0 {
            prefixes.remove(&prefix);
        }
    }
}

fn learned_prefix(ip: IpAddr) -> IpNet {
    let length = if ip.is_ipv4() { LEARNED_IPV4 } else { LEARNED_IPV6 };
    IpNet::new(ip, length).map_or(ip.into(), |net| net.trunc())
}

/// The prefix of `ip`, and for IPv4 the one before it and the one after it: many CNIs hand out neighbouring blocks. Calico does
/// not: the first pod in a new block far from all known ones is external until the index has it.
fn neighbours(ip: IpAddr) -> [IpNet; 3] {
    let other = |step: i32| match ip {
        IpAddr::V4(v4) => Ipv4Addr::from(v4.to_bits().saturating_add_signed(step * (1 << (32 - LEARNED_IPV4)))).into(),
        IpAddr::V6(_) => ip,
    };
    [learned_prefix(ip), learned_prefix(other(-1)), learned_prefix(other(1))]
}

#[cfg(test)]
mod tests;
