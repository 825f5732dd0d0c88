//! Whose chain, table or program it is, by the names that the well-known ones use.

/// Who made a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Enforces NetworkPolicy.
    Policy(&'static str),
    /// kube-proxy and kubelet: services, not policies.
    KubeProxy,
    HostFirewall(&'static str),
    /// Keeps the networks of a container engine or of virtual machines apart.
    ContainerEngine(&'static str),
    /// Lives in a pod's own network namespace.
    Sidecar(&'static str),
}

impl Owner {
    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Owner::KubeProxy => "kube-proxy",
            Owner::Policy(name) | Owner::HostFirewall(name) | Owner::ContainerEngine(name) | Owner::Sidecar(name) => {
                name
            }
        }
    }

    pub fn is_policy(self) -> bool {
        matches!(self, Owner::Policy(_))
    }
}

/// Beginnings of chain names. The first that fits counts, so longer ones come before the ones they begin with.
const CHAINS: &[(&str, Owner)] = &[
    ("KUBE-POD-FW-", Owner::Policy("kube-router")),
    ("KUBE-NWPLCY-", Owner::Policy("kube-router")),
    ("KUBE-ROUTER-", Owner::Policy("kube-router")),
    ("cali-", Owner::Policy("Calico")),
    ("filter-cali-", Owner::Policy("Calico")),
    ("mangle-cali-", Owner::Policy("Calico")),
    ("nat-cali-", Owner::Policy("Calico")),
    ("raw-cali-", Owner::Policy("Calico")),
    ("WEAVE-NPC", Owner::Policy("Weave Net")),
    ("AZURE-NPM", Owner::Policy("Azure NPM")),
    ("ANTREA-", Owner::Policy("Antrea")),
    ("KUBE-", Owner::KubeProxy),
    ("ufw6-", Owner::HostFirewall("ufw")),
    ("ufw-", Owner::HostFirewall("ufw")),
    ("f2b-", Owner::HostFirewall("fail2ban")),
    // firewalld with the iptables backend names chains by direction and zone: IN_public, FWDI_public, FWDO_public.
    ("IN_", Owner::HostFirewall("firewalld")),
    ("FWD_", Owner::HostFirewall("firewalld")),
    ("FWDI_", Owner::HostFirewall("firewalld")),
    ("FWDO_", Owner::HostFirewall("firewalld")),
    ("INPUT_ZONES", Owner::HostFirewall("firewalld")),
    ("FORWARD_IN_ZONES", Owner::HostFirewall("firewalld")),
    ("FORWARD_OUT_ZONES", Owner::HostFirewall("firewalld")),
    ("DOCKER", Owner::ContainerEngine("Docker")),
    ("NETAVARK", Owner::ContainerEngine("Podman")),
    ("CNI-ISOLATION", Owner::ContainerEngine("CNI firewall plugin")),
    ("CNI-FORWARD", Owner::ContainerEngine("CNI firewall plugin")),
    ("LIBVIRT_", Owner::ContainerEngine("libvirt")),
    ("ISTIO_", Owner::Sidecar("Istio")),
    ("PROXY_INIT_", Owner::Sidecar("Linkerd")),
];

/// Names of nftables tables that belong to one program as a whole.
const TABLES: &[(&str, Owner)] = &[
    ("kube-network-policies", Owner::Policy("kube-network-policies")),
    ("kindnet-network-policies", Owner::Policy("kindnet")),
    ("kindnet", Owner::Policy("kindnet")),
    ("calico", Owner::Policy("Calico")),
    ("kube-router", Owner::Policy("kube-router")),
    ("kube-proxy", Owner::KubeProxy),
    ("firewalld", Owner::HostFirewall("firewalld")),
    ("crowdsec", Owner::HostFirewall("crowdsec")),
    ("netavark", Owner::ContainerEngine("Podman")),
    ("docker-bridges", Owner::ContainerEngine("Docker")),
];

/// Beginnings of the names of eBPF programs that enforce policies. The kernel keeps 15 octets of a name.
const PROGRAMS: &[(&str, &str)] = &[
    ("cali_tc", "Calico"),
    ("calico_tc", "Calico"),
    ("cali_xdp", "Calico"),
    ("cil_", "Cilium"),
    ("handle_ingress", "AWS network policy agent"),
    ("handle_egress", "AWS network policy agent"),
];

/// The owner of a chain in `table`. Legacy tables have names of the kernel's, so only the chain's counts there.
pub fn of_chain(table: &str, chain: &str, nft: bool) -> Option<Owner> {
    let by_chain = CHAINS.iter().find(|(prefix, _)| chain.starts_with(prefix)).map(|(_, owner)| *owner);
    let by_table = || TABLES.iter().find(|(name, _)| nft && table == *name).map(|(_, owner)| *owner);
    by_chain.or_else(by_table)
}

/// The CNI that a tc or XDP program of this name enforces for.
pub fn of_program(name: &str) -> Option<&'static str> {
    PROGRAMS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, cni)| *cni)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_field() {
        let check = |table, chain, nft, owner: Option<&str>| {
            assert_eq!(of_chain(table, chain, nft).map(Owner::name), owner, "{table} {chain}");
        };
        check("filter", "cali-tw-cali1234", false, Some("Calico"));
        check("calico", "filter-cali-FORWARD", true, Some("Calico"));
        check("filter", "KUBE-POD-FW-ABC", false, Some("kube-router"));
        check("filter", "KUBE-NWPLCY-ABC", true, Some("kube-router"));
        check("filter", "KUBE-ROUTER-FORWARD", false, Some("kube-router"));
        check("filter", "WEAVE-NPC-INGRESS", false, Some("Weave Net"));
        check("filter", "AZURE-NPM-INGRESS-DROPS", false, Some("Azure NPM"));
        check("filter", "KUBE-FIREWALL", false, Some("kube-proxy"));
        check("kube-proxy", "services", true, Some("kube-proxy"));
        check("kindnet-network-policies", "postrouting", true, Some("kindnet"));
        check("filter", "ufw-before-input", false, Some("ufw"));
        check("firewalld", "filter_INPUT", true, Some("firewalld"));
        check("filter", "DOCKER-ISOLATION-STAGE-2", false, Some("Docker"));
        check("filter", "INPUT", false, None);
        check("kube-proxy", "services", false, None);
    }
}
