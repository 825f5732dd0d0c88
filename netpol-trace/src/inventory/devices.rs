//! Devices and the programs on them: XDP, tc filters below clsact, TCX, netkit, Open vSwitch.

use std::io;

use super::products;
pub use crate::netlink::route::Xdp;
use crate::netlink::route::{self, EGRESS, INGRESS, Link};

/// A network device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: String,
    /// `veth`, `netkit`, `openvswitch`, …; empty for hardware.
    pub kind: String,
    pub xdp: Option<Xdp>,
    pub clsact: bool,
    /// Names of tc programs: below clsact, in TCX, and in netkit for both of its ends.
    pub programs: Vec<String>,
}

impl Device {
    /// Returns the CNI whose program is on this device.
    pub fn cni(&self) -> Option<&'static str> {
        self.programs.iter().find_map(|name| products::of_program(name))
    }

    /// Returns true if programs drop packets here before the kernel has them, so that the agent cannot see these drops.
    pub fn blind(&self) -> bool {
        match self.xdp {
            Some(Xdp::Native) => self.kind != "veth",
            Some(Xdp::Offload) => true,
            Some(Xdp::Generic) | None => false,
        }
    }
}

/// Reads every device of this network namespace. `linked` returns the names of a device's programs that netlink does not list.
pub fn read(linked: impl Fn(&str) -> Vec<String>) -> io::Result<Vec<Device>> {
    let clsact = route::clsact()?;
    let device = |Link { index, name, kind, xdp, .. }: Link| {
        let clsact = clsact.contains(&index);
        let mut programs = linked(&name);
        if clsact {
            let filters =
                [INGRESS, EGRESS].into_iter().flat_map(|parent| route::filters(index, parent).unwrap_or_default());
            programs.extend(filters.filter(|filter| filter.kind == "bpf").map(|filter| filter.name));
        }
        programs.sort_unstable();
        programs.dedup();
        Device { index, name, kind, xdp, clsact, programs }
    };
    Ok(route::links()?.into_iter().map(device).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_veth_shows_what_xdp_drops_in_the_driver() {
        let device = |kind: &str| Device { kind: kind.into(), xdp: Some(Xdp::Native), ..Device::default() };
        assert!(!device("veth").blind());
        assert!(device("").blind());
    }

    #[test]
    fn a_cni_is_known_by_its_program() {
        let device = |program: &str| Device { programs: vec![program.into()], ..Device::default() };
        assert_eq!(device("cil_from_contai").cni(), Some("Cilium"));
        assert_eq!(device("my_shaper").cni(), None);
    }
}
