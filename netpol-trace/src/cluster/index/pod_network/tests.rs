//! Clusters as their CNIs write them: the fields and annotations that Node and Pod objects really have.

use super::super::super::manifests;
use super::super::{AddressOwner, Index};
use super::*;
use crate::cluster::Object;

/// What an index knows of an address.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    Pod,
    Node,
    /// Nobody's, but it may be a pod's: it waits for its name, and never gets an ipBlock.
    PerhapsAPod,
    External,
}

fn index(yaml: &str) -> Index {
    let loaded = manifests::load_bytes("cluster.yaml", yaml.as_bytes());
    assert_eq!(loaded.error().map(ToString::to_string), None);
    Index::from_objects(loaded.objects.into_iter().map(|located| located.object))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[track_caller]
fn check(index: &Index, expected: &[(&str, Known)]) {
    for (address, want) in expected {
        let known = match index.owner_of(ip(address)) {
            AddressOwner::Pod(_) => Known::Pod,
            AddressOwner::Node(_) => Known::Node,
            _ if index.in_pod_network(ip(address)) => Known::PerhapsAPod,
            _ => Known::External,
        };
        assert_eq!(&known, want, "{address}");
    }
}

fn node(name: &str, annotations: &str, pod_cidrs: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{{pod_cidrs}}}\n\
         status: {{addresses: [{{type: InternalIP, address: \"{address}\"}}, {{type: Hostname, address: {name}}}]}}\n"
    )
}

fn pod(name: &str, address: &str, host_network: bool) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: n1, hostNetwork: {host_network}, containers: []}}\n\
         status: {{phase: Running, podIP: \"{address}\", podIPs: [{{ip: \"{address}\"}}]}}\n"
    )
}

/// Amazon's VPC CNI: pods have addresses of the VPC's subnets, next to the nodes' own, and no node has a podCIDR.
#[test]
fn eks() {
    let yaml =
        node("n1", "", "", "10.0.41.17") + &pod("web", "10.0.40.200", false) + &pod("kube-proxy", "10.0.41.17", true);
    check(
        &index(&yaml),
        &[
            ("10.0.40.200", Known::Pod),
            ("10.0.41.17", Known::Node),
            ("10.0.40.7", Known::PerhapsAPod),
            ("10.0.41.99", Known::PerhapsAPod),
            ("10.0.99.5", Known::External),
            ("8.8.8.8", Known::External),
        ],
    );
}

/// Azure CNI with addresses of the VNet, and with an overlay, which sets podCIDR.
#[test]
fn aks() {
    let vnet = node("n1", "", "", "10.224.0.4") + &pod("web", "10.224.0.33", false);
    check(
        &index(&vnet),
        &[("10.224.0.34", Known::PerhapsAPod), ("10.224.0.4", Known::Node), ("52.239.1.1", Known::External)],
    );
    let overlay = node("n1", "", "podCIDR: 10.244.3.0/24, podCIDRs: [10.244.3.0/24]", "10.224.0.4");
    check(
        &index(&overlay),
        &[("10.244.3.9", Known::PerhapsAPod), ("10.224.0.5", Known::External), ("10.224.0.4", Known::Node)],
    );
}

#[test]
fn gke() {
    let annotations = "network.gke.io/networks: '[]'";
    let yaml = node("n1", annotations, "podCIDR: 10.8.2.0/24, podCIDRs: [10.8.2.0/24]", "10.128.0.7");
    check(
        &index(&yaml),
        &[("10.8.2.77", Known::PerhapsAPod), ("10.128.0.7", Known::Node), ("10.128.0.9", Known::External)],
    );
}

/// OVN-Kubernetes leaves podCIDR empty and writes annotations.
#[test]
fn ovn_kubernetes() {
    let annotations = r#"k8s.ovn.org/node-subnets: '{"default":["10.244.1.0/24"]}', k8s.ovn.org/node-primary-ifaddr: '{"ipv4":"172.18.0.3/16"}', k8s.ovn.org/host-cidrs: '["172.18.0.3/16","192.168.7.1/24"]'"#;
    check(
        &index(&node("n1", annotations, "", "172.18.0.3")),
        &[
            ("10.244.1.9", Known::PerhapsAPod),
            ("10.244.1.2", Known::Node),
            ("192.168.7.1", Known::Node),
            ("172.18.0.9", Known::External),
        ],
    );
    let one_subnet = r#"k8s.ovn.org/node-subnets: '{"default":"10.244.1.0/24"}'"#;
    check(&index(&node("n1", one_subnet, "", "172.18.0.3")), &[("10.244.1.9", Known::PerhapsAPod)]);
}

/// Calico's own address management: podCIDR is set, and pods have other addresses.
#[test]
fn calico_ipam() {
    let annotations = "projectcalico.org/IPv4Address: 172.18.0.3/16, projectcalico.org/IPv4VXLANTunnelAddr: 192.168.219.64, projectcalico.org/IPv4IPIPTunnelAddr: 192.168.219.65";
    let yaml = node("n1", annotations, "podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]", "172.18.0.3")
        + &pod("web", "192.168.219.70", false);
    let index = index(&yaml);
    check(
        &index,
        &[
            ("192.168.219.64", Known::Node),
            ("192.168.219.65", Known::Node),
            ("192.168.219.71", Known::PerhapsAPod),
            ("203.0.113.9", Known::External),
        ],
    );
    assert!(!index.knows_pod_networks(), "the podCIDR is not what pods have");
}

#[test]
fn cilium_cluster_pool() {
    let annotations = "network.cilium.io/ipv4-pod-cidr: 10.0.1.0/24, network.cilium.io/ipv4-cilium-host: 10.0.1.204";
    let yaml = node("n1", annotations, "podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]", "172.18.0.3")
        + &pod("web", "10.0.1.12", false);
    let index = index(&yaml);
    check(&index, &[("10.0.1.204", Known::Node), ("10.0.1.13", Known::PerhapsAPod), ("10.0.77.1", Known::External)]);
    assert!(index.knows_pod_networks());
}

#[test]
fn flannel_and_k3s() {
    let annotations = "flannel.alpha.coreos.com/public-ip: 172.18.0.3, flannel.alpha.coreos.com/backend-type: vxlan, k3s.io/internal-ip: '172.18.0.3,fd00:18::3'";
    let yaml = node("n1", annotations, "podCIDR: 10.42.1.0/24, podCIDRs: [10.42.1.0/24]", "172.18.0.3");
    check(
        &index(&yaml),
        &[
            ("10.42.1.0", Known::Node),
            ("10.42.1.1", Known::Node),
            ("fd00:18::3", Known::Node),
            ("10.42.1.2", Known::PerhapsAPod),
            ("172.18.0.4", Known::External),
        ],
    );
}

/// IPv6: pods of one node share a /64.
#[test]
fn ipv6() {
    let yaml = node("n1", "", "", "2001:db8:1::17") + &pod("web", "2001:db8:2::a", false);
    check(
        &index(&yaml),
        &[("2001:db8:2::b", Known::PerhapsAPod), ("2001:db8:1::17", Known::Node), ("2001:db8:1::18", Known::External)],
    );
}

#[test]
fn a_prefix_goes_with_its_last_pod() {
    let mut index = index(&(pod("a", "10.0.40.1", false) + &pod("b", "10.0.40.2", false)));
    let remove = |index: &mut Index, name: &str| {
        index.remove(&crate::cluster::change::Key {
            kind: crate::cluster::kinds::Kind::Pod,
            namespace: Some("shop".into()),
            name: name.into(),
        });
    };
    remove(&mut index, "a");
    check(&index, &[("10.0.40.9", Known::PerhapsAPod)]);
    // A finished pod has no address any more.
    let mut b = (**index.pod("shop", "b").unwrap().pod).clone();
    b.phase = crate::model::cluster::PodPhase::Succeeded;
    index.upsert(Object::Pod(b));
    check(&index, &[("10.0.40.9", Known::External)]);
    remove(&mut index, "b");
    check(&index, &[("10.0.40.9", Known::External)]);
}

/// The agent's own network namespace is the node's only where it has an address of a Node object.
#[test]
fn local_addresses_are_this_nodes() {
    let mut index = index(&(node("n1", "", "", "172.18.0.3") + &pod("web", "10.0.40.1", false)));
    index.set_local_addresses(&["127.0.0.1", "172.18.0.3", "10.0.40.254", "169.254.20.10"].map(ip));
    assert!(index.has_local_addresses(&["10.0.40.254", "172.18.0.3", "169.254.20.10", "::1"].map(ip)));
    check(
        &index,
        &[
            ("10.0.40.254", Known::Node),
            ("169.254.20.10", Known::Node),
            ("127.0.0.1", Known::External),
            ("10.0.40.1", Known::Pod),
        ],
    );
    assert!(!index.has_local_addresses(&[ip("10.0.40.254")]));
    index.set_local_addresses(&[ip("10.0.40.254")]);
    check(&index, &[("10.0.40.254", Known::PerhapsAPod)]);
}

#[test]
fn unreadable_annotations_are_left_out() {
    let annotations = r#"k8s.ovn.org/node-subnets: '{"default":7}', projectcalico.org/IPv4VXLANTunnelAddr: nonsense, network.cilium.io/ipv4-pod-cidr: 10.0.0.0/99"#;
    check(
        &index(&node("n1", annotations, "", "172.18.0.3")),
        &[("10.0.0.1", Known::External), ("172.18.0.3", Known::Node)],
    );
}
