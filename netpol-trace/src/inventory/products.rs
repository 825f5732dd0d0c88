//! The registry of products that leave chains, tables, programs, devices or CNI configurations on a node: policy enforcers, and others
//! that drop packets.

/// What a product's rules and programs are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    PolicyEnforcer,
    /// Routes to services; its drops are about services and not about policies.
    ServiceProxy,
    HostFirewall,
    /// Separates the networks of containers or virtual machines.
    ContainerEngine,
    /// Works inside a pod's own network namespace.
    Sidecar,
    /// Connects pods, and enforces no policies by itself.
    Network,
}

/// One product and the names by which it is recognized.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub name: &'static str,
    pub role: Role,
    /// Beginnings of names of chains.
    pub chains: &'static [&'static str],
    /// Names of nftables tables that belong to the product as a whole.
    pub tables: &'static [&'static str],
    /// Beginnings of names of eBPF programs that enforce policies. The kernel keeps 15 bytes of a name.
    pub programs: &'static [&'static str],
    /// Beginnings of names of interfaces.
    pub devices: &'static [&'static str],
    /// Parts of names of files in /etc/cni/net.d.
    pub cni_configs: &'static [&'static str],
}

const ENFORCER: Product = Product {
    name: "",
    role: Role::PolicyEnforcer,
    chains: &[],
    tables: &[],
    programs: &[],
    devices: &[],
    cni_configs: &[],
};
const FIREWALL: Product = Product { role: Role::HostFirewall, ..ENFORCER };
const ENGINE: Product = Product { role: Role::ContainerEngine, ..ENFORCER };
const SIDECAR: Product = Product { role: Role::Sidecar, ..ENFORCER };
const NETWORK: Product = Product { role: Role::Network, ..ENFORCER };

pub const PRODUCTS: &[Product] = &[
    Product {
        name: "Calico",
        chains: &["cali-", "filter-cali-", "mangle-cali-", "nat-cali-", "raw-cali-"],
        tables: &["calico"],
        programs: &["cali_tc", "calico_tc", "cali_xdp"],
        devices: &["cali", "vxlan.calico"],
        cni_configs: &["calico", "canal"],
        ..ENFORCER
    },
    Product { name: "Cilium", programs: &["cil_"], devices: &["cilium_", "lxc"], cni_configs: &["cilium"], ..ENFORCER },
    Product {
        name: "kube-router",
        chains: &["KUBE-POD-FW-", "KUBE-NWPLCY-", "KUBE-ROUTER-"],
        tables: &["kube-router"],
        devices: &["kube-bridge"],
        cni_configs: &["kuberouter"],
        ..ENFORCER
    },
    Product { name: "kube-network-policies", tables: &["kube-network-policies"], ..ENFORCER },
    Product { name: "kindnet", tables: &["kindnet-network-policies", "kindnet"], ..ENFORCER },
    Product { name: "Weave Net", chains: &["WEAVE-NPC"], devices: &["weave"], cni_configs: &["weave"], ..ENFORCER },
    Product { name: "Antrea", chains: &["ANTREA-"], devices: &["antrea-gw"], cni_configs: &["antrea"], ..ENFORCER },
    Product { name: "OVN-Kubernetes", devices: &["ovn-k8s-mp"], cni_configs: &["ovn-kubernetes"], ..ENFORCER },
    Product { name: "Azure NPM", chains: &["AZURE-NPM"], ..ENFORCER },
    Product { name: "AWS network policy agent", programs: &["handle_ingress", "handle_egress"], ..ENFORCER },
    Product { name: "Flannel", devices: &["flannel"], cni_configs: &["flannel"], ..NETWORK },
    Product { name: "Azure CNI", devices: &["azv"], ..NETWORK },
    Product { name: "AWS VPC CNI", devices: &["eni"], cni_configs: &["aws"], ..NETWORK },
    // kubelet's chains too.
    Product { name: "kube-proxy", role: Role::ServiceProxy, chains: &["KUBE-"], tables: &["kube-proxy"], ..ENFORCER },
    Product { name: "ufw", chains: &["ufw-", "ufw6-"], ..FIREWALL },
    Product { name: "fail2ban", chains: &["f2b-"], ..FIREWALL },
    Product {
        name: "firewalld",
        // With the iptables backend chains are named by direction and zone: IN_public, FWDI_public, FWDO_public.
        chains: &["IN_", "FWD_", "FWDI_", "FWDO_", "INPUT_ZONES", "FORWARD_IN_ZONES", "FORWARD_OUT_ZONES"],
        tables: &["firewalld"],
        ..FIREWALL
    },
    Product { name: "crowdsec", tables: &["crowdsec"], ..FIREWALL },
    Product { name: "Docker", chains: &["DOCKER"], tables: &["docker-bridges"], ..ENGINE },
    Product { name: "Podman", chains: &["NETAVARK"], tables: &["netavark"], ..ENGINE },
    Product { name: "CNI firewall plugin", chains: &["CNI-ISOLATION", "CNI-FORWARD"], ..ENGINE },
    Product { name: "libvirt", chains: &["LIBVIRT_"], ..ENGINE },
    Product { name: "Istio", chains: &["ISTIO_"], ..SIDECAR },
    Product { name: "Linkerd", chains: &["PROXY_INIT_"], ..SIDECAR },
];

/// A product, by its place in [`PRODUCTS`]: small, and quick to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProductId(usize);

impl ProductId {
    pub fn product(self) -> &'static Product {
        &PRODUCTS[self.0]
    }

    pub fn name(self) -> &'static str {
        self.product().name
    }

    pub fn is_enforcer(self) -> bool {
        self.product().role == Role::PolicyEnforcer
    }

    /// Returns the product that made a chain of `table`: the one with the longest beginning that fits the chain's name, else the one that
    /// has the table. The kernel names the tables of iptables-legacy, so there only the chain's name counts.
    pub fn of_chain(table: &str, chain: &str, nft: bool) -> Option<ProductId> {
        let longest = |product: &Product| {
            product.chains.iter().filter(|prefix| chain.starts_with(**prefix)).map(|prefix| prefix.len()).max()
        };
        let by_chain = PRODUCTS.iter().enumerate().filter_map(|(id, product)| Some((longest(product)?, id)));
        let by_table = || PRODUCTS.iter().position(|product| nft && product.tables.contains(&table));
        by_chain.max().map(|(_, id)| id).or_else(by_table).map(ProductId)
    }
}

/// Returns the enforcer of a tc or XDP program.
pub fn of_program(name: &str) -> Option<&'static str> {
    let has = |product: &&Product| product.programs.iter().any(|prefix| name.starts_with(prefix));
    PRODUCTS.iter().find(has).map(|product| product.name)
}

/// Returns the CNIs of a node by the names of its interfaces and of the files in /etc/cni/net.d, sorted.
pub fn cnis<'a>(
    devices: impl IntoIterator<Item = &'a str>,
    config_files: impl IntoIterator<Item = &'a str>,
) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut add = |has: &dyn Fn(&Product) -> bool| {
        names.extend(PRODUCTS.iter().filter(|product| has(product)).map(|product| product.name));
    };
    for device in devices {
        add(&|product| product.devices.iter().any(|prefix| device.starts_with(prefix)));
    }
    for file in config_files {
        let file = file.to_ascii_lowercase();
        add(&|product| product.cni_configs.iter().any(|part| file.contains(part)));
    }
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn chains_and_tables() {
        let check = |table, chain, nft, product: Option<&str>| {
            assert_eq!(ProductId::of_chain(table, chain, nft).map(ProductId::name), product, "{table} {chain}");
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

    #[test]
    fn interfaces_and_configurations() {
        assert_eq!(cnis(["lo", "cali1234", "lxc0"], ["10-Canal.conflist"]), ["Calico", "Cilium"]);
        assert!(cnis(["eth0"], ["99-loopback.conf"]).is_empty());
    }

    /// A product that nothing recognizes, or a name that two products have, is a mistake in the table.
    #[test]
    fn every_name_is_of_one_product() {
        let mut seen = BTreeSet::new();
        for product in PRODUCTS {
            let Product { chains, tables, programs, devices, cni_configs, .. } = product;
            let names: Vec<(usize, &str)> = [chains, tables, programs, devices, cni_configs]
                .into_iter()
                .enumerate()
                .flat_map(|(kind, names)| names.iter().map(move |name| (kind, *name)))
                .collect();
            assert!(!names.is_empty(), "{}", product.name);
            for name in names {
                assert!(seen.insert(name), "{} is of two products", name.1);
            }
        }
    }
}
