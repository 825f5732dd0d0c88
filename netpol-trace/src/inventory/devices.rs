//! Devices and the programs on them, over rtnetlink: XDP, tc filters below clsact, netkit, Open vSwitch.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{self, Complete};
use super::nft::{attribute, nested, string, text};
use super::owner;

const GET_LINK: u16 = 18;
const NEW_LINK: u16 = 16;
const GET_QDISC: u16 = 38;
const NEW_QDISC: u16 = 36;
const GET_FILTER: u16 = 46;
const NEW_FILTER: u16 = 44;
/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`.
const PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// Devices that are looked at; a node has some hundreds of pods.
const MAX_DEVICES: usize = 16_384;

/// One device that has something on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: String,
    /// `veth`, `netkit`, `openvswitch`, …; empty for hardware.
    pub kind: String,
    pub xdp: Option<Xdp>,
    pub clsact: bool,
    /// Names of tc programs, below clsact and in TCX.
    pub programs: Vec<String>,
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

impl Device {
    /// The CNI whose program sits here.
    pub fn cni(&self) -> Option<&'static str> {
        self.programs.iter().find_map(|name| owner::of_program(name))
    }

    /// Drops that happen here and that nobody can see.
    pub fn blind(&self) -> bool {
        match self.xdp {
            Some(Xdp::Native) => self.kind != "veth",
            Some(Xdp::Offload) => true,
            Some(Xdp::Generic) | None => false,
        }
    }
}

/// Every device of this network namespace. `tcx` names the TCX programs of a device.
pub fn read(tcx: impl Fn(&str) -> Vec<String>) -> io::Result<Vec<Device>> {
    let mut devices = netlink::consistent(|| {
        let mut devices = Vec::new();
        // struct ifinfomsg, all zero: every device.
        let complete = netlink::dump(NETLINK_ROUTE, GET_LINK, &[0; 16], |kind, body| {
            if kind == NEW_LINK && devices.len() < MAX_DEVICES {
                devices.extend(device(body));
            }
        })?;
        Ok((devices, complete))
    })?;
    let mut clsact = Vec::new();
    netlink::dump(NETLINK_ROUTE, GET_QDISC, &[0; 20], |kind, body| {
        if kind == NEW_QDISC {
            clsact.extend(clsact_on(body));
        }
    })?;
    for device in &mut devices {
        if clsact.contains(&device.index) {
            device.clsact = true;
            device.programs = filters(device.index).unwrap_or_default();
        }
        device.programs.extend(tcx(&device.name));
        device.programs.sort_unstable();
        device.programs.dedup();
    }
    Ok(devices)
}

fn device(body: &[u8]) -> Option<Device> {
    // struct ifinfomsg: family, padding, type, index.
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let attributes = body.get(16..)?;
    let xdp = nested(attributes, 43).and_then(|xdp| attribute(xdp, 2)?.first().copied()).and_then(|mode| match mode {
        0 => None,
        2 => Some(Xdp::Generic),
        3 => Some(Xdp::Offload),
        // 1, and 4 for several at once.
        _ => Some(Xdp::Native),
    });
    let kind = nested(attributes, 18).and_then(|info| string(info, 1)).unwrap_or_default();
    Some(Device { index, name: string(attributes, 3)?, kind, xdp, ..Device::default() })
}

fn clsact_on(body: &[u8]) -> Option<u32> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    (string(body.get(20..)?, 1)? == "clsact").then_some(index)
}

/// Names of the bpf filters on both directions of a device.
fn filters(index: u32) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for parent in PARENTS {
        // struct tcmsg: family and padding, index, handle, parent, info.
        let mut request = vec![0; 4];
        request.extend(index.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(parent.to_ne_bytes());
        request.extend([0; 4]);
        let _: Complete = netlink::dump(NETLINK_ROUTE, GET_FILTER, &request, |kind, body| {
            if kind == NEW_FILTER {
                names.extend(filter_name(body));
            }
        })?;
    }
    Ok(names)
}

fn filter_name(body: &[u8]) -> Option<String> {
    let attributes = body.get(20..)?;
    (string(attributes, 1)? == "bpf").then_some(())?;
    // `TCA_BPF_NAME` is `object.o:[section]` or the program's name.
    attribute(nested(attributes, 2)?, 7).map(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::nft::tests::nla;
    use super::*;

    #[test]
    fn a_device_with_xdp() {
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&7u32.to_ne_bytes());
        body.extend(nla(3, b"eth0\0"));
        body.extend(nla(18, &nla(1, b"veth\0")));
        body.extend(nla(43, &nla(2, &[1])));
        let device = device(&body).unwrap();
        assert_eq!((device.index, device.name.as_str(), device.kind.as_str()), (7, "eth0", "veth"));
        assert_eq!(device.xdp, Some(Xdp::Native));
        assert!(!device.blind(), "veth drops in native mode are seen");
        assert!(Device { kind: String::new(), ..device }.blind());
    }

    #[test]
    fn a_cni_is_known_by_its_program() {
        let device = |program: &str| Device { programs: vec![program.into()], ..Device::default() };
        assert_eq!(device("cil_from_contai").cni(), Some("Cilium"));
        assert_eq!(device("my_shaper").cni(), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (device(&body), clsact_on(&body), filter_name(&body));
        }
    }
}
