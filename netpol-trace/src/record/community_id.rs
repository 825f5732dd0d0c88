//! Community ID v1: a hash of a flow's endpoints (seed 0), the same in Zeek, Suricata and others.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::model::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// ICMP types that belong to one flow: a request and its reply. They stand for ports.
const ICMP_PAIRS: [(u8, u8); 5] = [(8, 0), (13, 14), (15, 16), (10, 9), (17, 18)];
const ICMPV6_PAIRS: [(u8, u8); 6] = [(128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145)];

/// Length of an id: a version, and 20 bytes in base64.
const LENGTH: usize = 30;

/// Returns the id of the packet's flow, the same in both directions. Returns `None` if the protocol has ports and the packet has none (a later
/// fragment).
pub fn community_id(
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    ports: Option<(u16, u16)>,
    icmp: Option<(u8, u8)>,
) -> Option<String> {
    let (ports, one_way) = match protocol {
        TCP | UDP | SCTP => (Some(ports?), false),
        ICMP => icmp_ports(icmp?, &ICMP_PAIRS),
        ICMPV6 => icmp_ports(icmp?, &ICMPV6_PAIRS),
        _ => (ports, false),
    };
    let (near, far) = ((source, ports.map(|p| p.0)), (destination, ports.map(|p| p.1)));
    let (first, second) = if one_way || near <= far { (near, far) } else { (far, near) };
    let mut hash = Sha1::new();
    hash.update([0, 0]);
    for address in [first.0, second.0] {
        match address {
            IpAddr::V4(address) => hash.update(address.octets()),
            IpAddr::V6(address) => hash.update(address.octets()),
        }
    }
    hash.update([protocol, 0]);
    for port in [first.1, second.1].into_iter().flatten() {
        hash.update(port.to_be_bytes());
    }
    let mut id = String::with_capacity(LENGTH);
    id.push_str("1:");
    STANDARD.encode_string(hash.finalize(), &mut id);
    Some(id)
}

/// Returns what stands for the ports, and whether the flow has one direction only. For a type without a reply, the code is the second port.
fn icmp_ports((kind, code): (u8, u8), pairs: &[(u8, u8)]) -> (Option<(u16, u16)>, bool) {
    let both = pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
    match both.into_iter().find(|(asks, _)| *asks == kind) {
        Some((_, answers)) => (Some((kind.into(), answers.into())), false),
        None => (Some((kind.into(), code.into())), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(source: &str, destination: &str, protocol: u8, ports: Option<(u16, u16)>, icmp: Option<(u8, u8)>) -> String {
        community_id((source.parse().unwrap(), destination.parse().unwrap()), protocol, ports, icmp).unwrap_or_default()
    }

    /// From the specification's baseline.
    #[test]
    fn the_specifications_examples() {
        let tcp = id("128.232.110.120", "66.35.250.204", TCP, Some((34855, 80)), None);
        assert_eq!(tcp, "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        assert_eq!(id("66.35.250.204", "128.232.110.120", TCP, Some((80, 34855)), None), tcp);
        assert_eq!(id("192.168.0.89", "192.168.0.1", ICMP, None, Some((8, 0))), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
    }

    #[test]
    fn a_later_fragment_has_none() {
        assert_eq!(id("10.0.0.1", "10.0.0.2", UDP, None, None), "");
    }
}
