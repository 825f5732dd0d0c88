//! A node of the cluster: a network namespace, one for each pod, and their objects in the API server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use serde_json::{Value, json};

use super::control_plane::ControlPlane;
use super::relay::Relay;
use crate::agent::Agent;
use crate::topology::{Host, Lab};

/// A running node that can reach the API server.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    /// Part of its addresses, so that no two nodes have the same.
    number: u8,
    pub lab: Lab,
    plane: &'static ControlPlane,
    _relay: Relay,
}

/// Where a pod gets its traffic and its name.
#[derive(Debug, Clone, Copy)]
pub struct PodSpec<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// The last part of its addresses.
    pub host: u8,
}

impl Node {
    /// Makes the namespace and the Node object. Each node of a control plane has a number of its own.
    pub fn start(plane: &'static ControlPlane, number: u8) -> Result<Node> {
        let name = format!("node-{number}");
        let (ipv4, ipv6) = (node_ipv4(number), Ipv6Addr::new(0xfc00, 0xf853, 0, 0, 0, 0, 0, number.into()));
        let lab = Lab::new(&name, ipv4, ipv6)?;
        let relay = Relay::start(lab.node(), plane.address())?;
        plane.api().apply(&json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "spec": {
                "podCIDR": format!("10.244.{number}.0/24"),
                "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64")],
            },
            "status": { "addresses": [
                { "type": "InternalIP", "address": ipv4 },
                { "type": "InternalIP", "address": ipv6 },
                { "type": "Hostname", "address": name },
            ] },
        }))?;
        Ok(Node { name, number, lab, plane, _relay: relay })
    }

    fn ipv4(&self) -> Ipv4Addr {
        node_ipv4(self.number)
    }

    pub fn plane(&self) -> &'static ControlPlane {
        self.plane
    }

    /// Makes a running pod: its network namespace, and its object with its addresses. `object` has the Pod's labels and containers' ports,
    /// which policies select.
    pub fn pod(&mut self, pod: PodSpec<'_>, labels: &Value, ports: &Value) -> Result<&Host> {
        let PodSpec { namespace, name, host } = pod;
        let ipv4 = Ipv4Addr::new(10, 244, self.number, host);
        let ipv6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, host.into());
        self.plane.api().apply(&self.pod_object(pod, labels, ports, &[ipv4.into(), ipv6.into()]))?;
        self.lab.attach(&format!("{namespace}/{name}"), ipv4, ipv6)
    }

    /// The pod's object, running with these addresses.
    pub fn pod_object(&self, pod: PodSpec<'_>, labels: &Value, ports: &Value, ips: &[IpAddr]) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": pod.namespace, "name": pod.name, "labels": labels },
            "spec": {
                "nodeName": self.name,
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "main", "image": "registry.example/lab:1", "ports": ports }],
            },
            "status": {
                "phase": "Running",
                "hostIP": self.ipv4(),
                "podIP": ips.first(),
                "podIPs": ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>(),
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        })
    }

    /// The agent on this node, with the API server as its source, attached and in sync.
    pub fn watch(&self) -> Result<Agent> {
        let kubeconfig = self.plane.kubeconfig();
        let arguments = ["--all-drops", "--node-name", &self.name, "--kubeconfig", &kubeconfig.to_string_lossy()];
        Agent::start_in(self.lab.node(), &arguments)
    }
}

fn node_ipv4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, number)
}
