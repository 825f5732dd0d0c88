//! Addresses of a node that its CNI writes into annotations: bridges and tunnels, from which kubelet and hostNetwork pods reach pods.
//!
//! Annotations are untrusted text: a value that cannot be read is left out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// Annotations whose value is an address, with or without a prefix length.
const ADDRESSES: [&str; 14] = [
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "network.cilium.io/ipv4-cilium-host",
    "network.cilium.io/ipv6-cilium-host",
    "io.cilium.network.ipv4-cilium-host",
    "io.cilium.network.ipv6-cilium-host",
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
    "k3s.io/internal-ip",
];
/// Annotations whose value is a prefix of the pod network.
const PREFIXES: [&str; 4] = [
    "network.cilium.io/ipv4-pod-cidr",
    "network.cilium.io/ipv6-pod-cidr",
    "io.cilium.network.ipv4-pod-cidr",
    "io.cilium.network.ipv6-pod-cidr",
];
/// `{"ipv4":"172.18.0.3/16","ipv6":"fc00::3/64"}`
const OVN_NODE_ADDRESS: &str = "k8s.ovn.org/node-primary-ifaddr";
/// `["172.18.0.3/16"]`
const OVN_HOST_ADDRESSES: &str = "k8s.ovn.org/host-cidrs";
/// `{"default":["10.244.1.0/24"]}` or `{"default":"10.244.1.0/24"}`
const OVN_SUBNETS: &str = "k8s.ovn.org/node-subnets";
const FLANNEL: &str = "flannel.alpha.coreos.com/";
/// Values that one annotation adds at most.
const MAX_VALUES: usize = 64;

/// Adds the addresses and pod CIDRs of a node's annotations.
pub(super) fn add(
    annotations: Option<&BTreeMap<String, String>>,
    addresses: &mut Vec<IpAddr>,
    pod_cidrs: &mut Vec<IpNet>,
) {
    let Some(annotations) = annotations else { return };
    let values = |keys: &[&str]| {
        let values: Vec<&str> = keys.iter().filter_map(|key| annotations.get(*key)).map(String::as_str).collect();
        values
    };
    let json = |key: &str| annotations.get(key).map(|text| strings(text)).unwrap_or_default();
    for value in values(&PREFIXES).into_iter().map(str::to_owned).chain(json(OVN_SUBNETS)) {
        if let Ok(prefix) = value.parse::<IpNet>()
            && !pod_cidrs.contains(&prefix)
        {
            pod_cidrs.push(prefix);
        }
    }
    let written = values(&ADDRESSES).into_iter().map(str::to_owned);
    let found = written.chain(json(OVN_NODE_ADDRESS)).chain(json(OVN_HOST_ADDRESSES));
    let mut own: Vec<IpAddr> =
        found.flat_map(|value| value.split(',').filter_map(address).take(MAX_VALUES).collect::<Vec<_>>()).collect();
    if annotations.keys().any(|key| key.starts_with(FLANNEL)) {
        // The first address of the node's subnet is flannel.1's, the second the bridge's.
        own.extend(pod_cidrs.iter().flat_map(|subnet| host_addresses(subnet, [0, 1])));
    }
    if annotations.contains_key(OVN_SUBNETS) {
        // The second address is the gateway router's, the third that of ovn-k8s-mp0.
        own.extend(pod_cidrs.iter().flat_map(|subnet| host_addresses(subnet, [1, 2])));
    }
    for ip in own {
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
}

/// The strings in a JSON value, whatever its form.
fn strings(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending: Vec<Value> = serde_json::from_str(text).into_iter().collect();
    while let Some(value) = pending.pop() {
        match value {
            Value::String(text) if found.len() < MAX_VALUES => found.push(text),
            Value::Array(values) => pending.extend(values),
            Value::Object(values) => pending.extend(values.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
    found
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
}

fn host_addresses(subnet: &IpNet, offsets: [u32; 2]) -> impl Iterator<Item = IpAddr> {
    let base = subnet.network();
    offsets.into_iter().map(move |offset| match base {
        IpAddr::V4(ip) => std::net::Ipv4Addr::from(ip.to_bits().wrapping_add(offset)).into(),
        IpAddr::V6(ip) => std::net::Ipv6Addr::from(ip.to_bits().wrapping_add(u128::from(offset))).into(),
    })
}
