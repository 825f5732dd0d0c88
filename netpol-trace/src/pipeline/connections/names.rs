//! DNS answers that each pod received: names of addresses, bounded in memory and in time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::packet::dns;
use crate::packet::dns::DnsAnswer;

/// Names are kept for this long after their TTL: programs go on using an address, and retry connections that they opened in time.
const SLACK: Duration = Duration::from_secs(60);
/// Limit of TTLs.
const MAX_TTL: u32 = 24 * 3600;
/// Addresses kept for one pod, and pods.
const MAX_ADDRESSES: usize = 512;
const MAX_PODS: usize = 1024;
/// Names of one address.
const MAX_NAMES: usize = 4;
/// Bytes of all names kept for one pod: 128 for each address. The DNS server chooses how long names are.
const MAX_BYTES: usize = 128 * MAX_ADDRESSES;

/// Names of addresses, by the interface of the pod that received the answer.
#[derive(Debug, Default)]
pub struct DnsNames {
    pods: HashMap<u32, PodNames>,
    /// By the pods' own addresses, to which the answers were delivered.
    interfaces: HashMap<IpAddr, u32>,
}

/// The names that one pod received.
#[derive(Debug, Default)]
struct PodNames {
    addresses: HashMap<IpAddr, AddressNames>,
    /// Size of all names.
    bytes: usize,
}

#[derive(Debug)]
struct AddressNames {
    names: Vec<String>,
    until: Instant,
}

impl DnsNames {
    /// Takes a DNS answer that the pod with address `pod` behind `interface` received.
    pub fn add_answer(&mut self, interface: u32, pod: IpAddr, message: &[u8], now: Instant) {
        let Some(DnsAnswer { names, addresses }) = dns::parse(message) else { return };
        if self.pods.len() >= MAX_PODS && !self.pods.contains_key(&interface) {
            return;
        }
        if self.interfaces.len() >= 2 * MAX_PODS {
            self.interfaces.clear();
        }
        self.interfaces.insert(pod, interface);
        let known = self.pods.entry(interface).or_default();
        for address in addresses {
            let until = now + Duration::from_secs(address.ttl.min(MAX_TTL).into()) + SLACK;
            known.add(address.ip, &names, until, now);
        }
    }

    /// Returns the names for which the pod at `pod` received `address`.
    pub fn of(&self, pod: IpAddr, address: IpAddr, now: Instant) -> Vec<String> {
        let known = self.interfaces.get(&pod).and_then(|interface| self.pods.get(interface));
        let known = known.and_then(|known| known.addresses.get(&address)).filter(|known| known.until > now);
        known.map(|known| known.names.clone()).unwrap_or_default()
    }

    /// Keeps only the pods whose interfaces are still there.
    pub fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        self.pods.retain(|interface, _| exists(*interface));
        self.interfaces.retain(|_, interface| exists(*interface));
    }
}

impl PodNames {
    /// The newest answer's names come first.
    fn add(&mut self, address: IpAddr, names: &[String], until: Instant, now: Instant) {
        let mut entry = AddressNames { names: names.to_vec(), until };
        if let Some(former) = self.remove(address).filter(|former| former.until > now) {
            entry.until = entry.until.max(former.until);
            entry.names.extend(former.names.into_iter().filter(|name| !names.contains(name)));
        }
        entry.names.truncate(MAX_NAMES);
        self.make_room(entry.bytes(), now);
        self.bytes += entry.bytes();
        self.addresses.insert(address, entry);
    }

    fn remove(&mut self, address: IpAddr) -> Option<AddressNames> {
        let known = self.addresses.remove(&address)?;
        self.bytes -= known.bytes();
        Some(known)
    }

    /// Makes room for another address and its names: removes expired addresses, then those that expire first.
    fn make_room(&mut self, bytes: usize, now: Instant) {
        let full = |pod: &PodNames| pod.addresses.len() >= MAX_ADDRESSES || pod.bytes + bytes > MAX_BYTES;
        if full(self) {
            self.addresses.retain(|_, known| known.until > now);
            self.bytes = self.addresses.values().map(AddressNames::bytes).sum();
        }
        while full(self)
            && let Some(first) = self.addresses.iter().min_by_key(|(_, known)| known.until).map(|(ip, _)| *ip)
        {
            self.remove(first);
        }
    }
}

impl AddressNames {
    fn bytes(&self) -> usize {
        self.names.iter().map(String::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(ip: [u8; 4], ttl: u32) -> Vec<u8> {
        let mut message = b"\0\x01\x81\x80\0\x01\0\x01\0\0\0\0\x02db\x03lab\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01".to_vec();
        message.extend(ttl.to_be_bytes());
        message.extend([0, 4]);
        message.extend(ip);
        message
    }

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn names_live_as_long_as_their_ttl_and_a_little() {
        let (mut names, now) = (DnsNames::default(), Instant::now());
        names.add_answer(7, POD, &answer([10, 9, 0, 1], 30), now);
        let ip = IpAddr::from([10, 9, 0, 1]);
        assert_eq!(names.of(POD, ip, now + Duration::from_secs(89)), ["db.lab"]);
        assert!(names.of(POD, ip, now + Duration::from_secs(91)).is_empty());
        assert!(names.of(IpAddr::from([10, 0, 0, 2]), ip, now).is_empty(), "another pod received no answer");
        names.retain(|interface| interface != 7);
        assert!(names.of(POD, ip, now).is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut names, now) = (DnsNames::default(), Instant::now());
        for i in 0..10_000u16 {
            let [a, b] = i.to_be_bytes();
            names.add_answer(7, POD, &answer([10, 9, a, b], 30), now + Duration::from_millis(u64::from(i)));
        }
        assert_eq!(names.pods[&7].addresses.len(), MAX_ADDRESSES);
        // The newest are kept.
        let [a, b] = 9_999u16.to_be_bytes();
        assert_eq!(names.of(POD, IpAddr::from([10, 9, a, b]), now), ["db.lab"]);
    }

    /// An attacker's DNS server answers with names of maximal length, all different.
    #[test]
    fn memory_is_bounded_in_bytes_too() {
        let (mut names, now) = (DnsNames::default(), Instant::now());
        for i in 0..2_000u16 {
            let [a, b] = i.to_be_bytes();
            let mut message = b"\0\x01\x81\x80\0\x01\0\x01\0\0\0\0".to_vec();
            for _ in 0..3 {
                message.push(63);
                message.extend([a, b].iter().cycle().take(63));
            }
            message.extend(b"\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\x09");
            message.extend([a, b]);
            names.add_answer(7, POD, &message, now + Duration::from_millis(u64::from(i)));
            let pod = &names.pods[&7];
            assert!(pod.bytes <= MAX_BYTES);
            assert_eq!(pod.bytes, pod.addresses.values().map(AddressNames::bytes).sum::<usize>());
        }
        let [a, b] = 1_999u16.to_be_bytes();
        assert_eq!(names.of(POD, IpAddr::from([10, 9, a, b]), now).len(), 1, "the newest is kept");
        assert!(names.pods[&7].addresses.len() > 50, "a longest name takes 758 bytes");
    }
}
