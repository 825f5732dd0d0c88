//! The smallest lab: two pods on a node, `lab/client` and `lab/server`, and one policy that denies the server all ingress.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::agent::{Agent, Run};
use crate::nft;
use crate::record::{Record, drops};
use crate::topology::{Host, Lab, Wire};

pub const NODE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0xfc00, 0xf853, 0xccd, 0xe793, 0, 0, 0, 2);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 2);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 3);

/// A host that is no pod.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

/// An enforcer's ruleset for the policy. `denied` counts the dropped packets.
pub const DENY: &str = "
table inet network-policy {
	counter denied { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		ip daddr 10.244.1.3 counter name denied drop
		ip6 daddr fd00:10:244:1::3 counter name denied drop
	}
}";

/// The same without conntrack, as a stateless enforcer has it. The lab's packets then have no conntrack entry.
pub const DENY_STATELESS: &str = "
table inet network-policy {
	counter denied { }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip daddr 10.244.1.3 counter name denied drop
		ip6 daddr fd00:10:244:1::3 counter name denied drop
	}
}";

#[derive(Debug)]
pub struct Pair {
    pub lab: Lab,
    manifests: TempDir,
}

impl Pair {
    /// Starts both pods and loads `ruleset`.
    pub fn start(ruleset: &str) -> Result<Pair> {
        Pair::start_on(Wire::Veth, ruleset)
    }

    /// Does the same with another kind of devices.
    pub fn start_on(wire: Wire, ruleset: &str) -> Result<Pair> {
        let mut lab = Lab::new("node-a", NODE, NODE6)?;
        lab.attach_by(wire, "client", CLIENT, CLIENT6)?;
        lab.attach_by(wire, "server", SERVER, SERVER6)?;
        // Loading an empty ruleset would load the module nf_tables.
        if !ruleset.is_empty() {
            lab.enforce(ruleset)?;
        }
        let manifests = tempfile::tempdir()?;
        std::fs::write(manifests.path().join("cluster.yaml"), cluster())?;
        std::fs::write(manifests.path().join("policy.yaml"), policy("deny-server", "server"))?;
        Ok(Pair { lab, manifests })
    }

    /// Adds the host `outside`, which is no pod, and returns its address with DNS's port.
    pub fn add_outside(&mut self) -> Result<SocketAddr> {
        self.lab.attach("outside", OUTSIDE, OUTSIDE6)?;
        Ok((OUTSIDE, 53).into())
    }

    pub fn client(&self) -> Result<&Host> {
        self.lab.host("client")
    }

    pub fn server(&self) -> Result<&Host> {
        self.lab.host("server")
    }

    /// The folder with `cluster.yaml` and `policy.yaml`.
    pub fn manifests(&self) -> &Path {
        self.manifests.path()
    }

    /// Adds objects to the cluster.
    pub fn add(&self, file: &str, yaml: &str) -> Result<()> {
        Ok(std::fs::write(self.manifests().join(file), yaml)?)
    }

    /// Adds a policy to the cluster.
    pub fn add_policy(&self, yaml: &str) -> Result<()> {
        self.add("another-policy.yaml", yaml)
    }

    /// Starts the agent on this cluster's manifests, with every cause written.
    pub fn watch(&self) -> Result<Agent> {
        Agent::start(&["--all-drops", "--manifests", &self.manifests().to_string_lossy()])
    }

    /// Starts the agent in the node's network namespace, where the tc hook finds the pods' interfaces.
    pub fn watch_node(&self, arguments: &[&str]) -> Result<Agent> {
        let manifests = self.manifests().to_string_lossy().into_owned();
        let arguments: Vec<&str> = ["--manifests", &manifests].into_iter().chain(arguments.iter().copied()).collect();
        Agent::start_in(self.lab.node(), &arguments)
    }

    /// Packets of a named counter, or of the rules with this comment.
    pub fn counted(&self, counter: &str) -> Result<u64> {
        let node = self.lab.node();
        let named = nft::counters(node)?.remove(counter);
        named.or(nft::rule_counters(node)?.remove(counter)).with_context(|| format!("no counter {counter}"))
    }

    /// Stops the agent, checks its packet accounting, compares netfilter's drops in this lab with `counter`, and returns them.
    pub fn stop_and_compare(&self, agent: Agent, counter: &str) -> Result<Vec<Record>> {
        let run = agent.stop()?;
        run.balance()?;
        let records = self.netfilter_drops(&run);
        run.account_for(counter, self.counted(counter)?, &records)?;
        Ok(records)
    }

    /// This lab's drops by netfilter. No rule counts other drops, such as a closed socket's queue.
    pub fn netfilter_drops(&self, run: &Run) -> Vec<Record> {
        let own = drops(&run.records).filter(|record| self.lab.owns(record));
        // Kernels before 6.7 don't distinguish nftables from other netfilter users. Kernels before 5.18 give no reason.
        own.filter(|record| ["nftables", "netfilter"].contains(&record.text("/kernel/mechanism"))).cloned().collect()
    }
}

/// A policy in namespace `lab` that isolates the ingress of the pods `app=…` and allows nothing.
pub fn policy(name: &str, app: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  creationTimestamp: \"2026-10-05T08:14:20Z\"
  name: {name}
  namespace: lab
  uid: 5c2c0b8e-0a56-4f7c-9d0f-{name:0>12.12}
spec:
  podSelector:
    matchLabels:
      app: {app}
  policyTypes:
  - Ingress
"
    )
}

/// The same for egress.
pub fn egress_policy(name: &str, app: &str) -> String {
    policy(name, app).replace("Ingress", "Egress")
}

/// A running pod of namespace `lab` with label `app` set to its name.
pub fn pod(name: &str, ips: &[IpAddr]) -> String {
    let all: String = ips.iter().map(|ip| format!("  - ip: \"{ip}\"\n")).collect();
    let first = ips.first().map(|ip| format!("  podIP: \"{ip}\"\n")).unwrap_or_default();
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  creationTimestamp: \"2026-10-05T08:13:00Z\"
  labels:
    app: {name}
  name: {name}
  namespace: lab
spec:
  containers:
  - image: registry.example/lab:1
    name: main
  nodeName: node-a
status:
  phase: Running
{first}  podIPs:
{all}"
    )
}

fn cluster() -> String {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: lab\n---\n";
    let node = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-a\nspec:\n  podCIDR: 10.244.1.0/24\n  podCIDRs:\n  - 10.244.1.0/24\n  \
         - fd00:10:244:1::/64\nstatus:\n  addresses:\n  - address: {NODE}\n    type: InternalIP\n  - address: \"{NODE6}\"\n    \
         type: InternalIP\n"
    );
    let client = pod("client", &[CLIENT.into(), CLIENT6.into()]);
    let server = pod("server", &[SERVER.into(), SERVER6.into()]);
    [namespace, &node, &client, &server].concat()
}
