//! kube-proxy's own drops, which are not a policy's, and a service whose packets a policy drops.

use anyhow::Result;
use netpol_trace_tests::row::{Expect, PORT, Row, other, policy};
use netpol_trace_tests::{iptables, require, test_name};

/// Addresses of the service: cluster IPs and load-balancer IPs.
pub const CLUSTER_IP: &str = "10.96.0.50";
pub const CLUSTER_IP6: &str = "fd00:10:96::50";
const LB_IP: &str = "198.51.100.5";
const LB_IP6: &str = "2001:db8:5::5";

pub fn service(endpoints: bool) -> String {
    let mut yaml = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: svc, namespace: lab}}
spec:
  type: LoadBalancer
  clusterIP: {CLUSTER_IP}
  clusterIPs: [{CLUSTER_IP}, \"{CLUSTER_IP6}\"]
  selector: {{app: server}}
  ports:
  - {{port: 9, protocol: UDP, targetPort: 9}}
status:
  loadBalancer:
    ingress:
    - ip: {LB_IP}
    - ip: \"{LB_IP6}\"
"
    );
    for (family, ip) in [("IPv4", "10.244.1.3"), ("IPv6", "fd00:10:244:1::3")].into_iter().filter(|_| endpoints) {
        yaml += &format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: svc-{}
  namespace: lab
  labels: {{kubernetes.io/service-name: svc}}
addressType: {family}
endpoints:
- addresses: [\"{ip}\"]
  conditions: {{ready: true}}
  nodeName: node-a
  targetRef: {{kind: Pod, name: server, namespace: lab}}
ports:
- {{name: \"\", port: 9, protocol: UDP}}
",
            family.to_lowercase()
        );
    }
    yaml
}

/// kube-proxy's rules on the way to `to`, as it writes them.
fn row(test: &'static str, endpoints: bool, chain: &str, target: &str, to: [&str; 2], expect: Expect) -> Result<()> {
    let mut row = Row::new(test)?;
    row.pair.add("service.yaml", &service(endpoints))?;
    let node = row.pair.lab.node();
    // On a real node the default route leads out.
    node.ip("route add default dev veth1\nroute add ::/0 dev veth1\n")?;
    iptables::can_load(node, "legacy")?;
    for (program, ip) in iptables::programs("legacy").iter().zip(to) {
        for line in [
            format!("-N {chain}"),
            format!("-A FORWARD -m conntrack --ctstate NEW -j {chain}"),
            format!("-A {chain} -d {ip} -p udp --dport 9 -m comment --comment row -j {target}"),
        ] {
            node.command(program, &line.split(' ').collect::<Vec<_>>(), "")?;
        }
    }
    row.watch()?;
    row.send("client", &[format!("{}:{PORT}", to[0]).parse()?, format!("[{}]:{PORT}", to[1]).parse()?])?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(expect, counted).map(drop)
}

#[test]
fn no_endpoints() -> Result<()> {
    let expect = Expect { action: "reject", ..other("iptables-legacy", "forward", "service_without_endpoints") };
    require!(row(test_name!(), false, "KUBE-SERVICES", "REJECT", [CLUSTER_IP, CLUSTER_IP6], expect));
    Ok(())
}

#[test]
fn load_balancer_source_ranges() -> Result<()> {
    let expect = Expect { action: "drop", ..other("iptables-legacy", "forward", "not_policy") };
    require!(row(test_name!(), true, "KUBE-PROXY-FIREWALL", "DROP", [LB_IP, LB_IP6], expect));
    Ok(())
}

#[test]
fn external_traffic_policy_local() -> Result<()> {
    let expect = Expect { action: "drop", ..other("iptables-legacy", "forward", "not_policy") };
    require!(row(test_name!(), true, "KUBE-EXTERNAL-SERVICES", "DROP", [LB_IP, LB_IP6], expect));
    Ok(())
}

/// The client's destination is the service; the policy denies the pod behind it.
#[test]
fn policy_behind_a_service() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    row.pair.add("service.yaml", &service(true))?;
    row.pair.lab.enforce(&format!(
        "table inet kube-proxy {{\nchain nat {{\ntype nat hook prerouting priority -100;\n\
         ip daddr {CLUSTER_IP} dnat ip to 10.244.1.3\nip6 daddr {CLUSTER_IP6} dnat ip6 to fd00:10:244:1::3\n}}\n}}\n\
         table inet t {{\nchain c {{\ntype filter hook forward priority 0;\nudp dport 9 counter drop comment \"row\"\n}}\n}}\n"
    ))?;
    row.watch()?;
    row.send("client", &[format!("{CLUSTER_IP}:{PORT}").parse()?, format!("[{CLUSTER_IP6}]:{PORT}").parse()?])?;
    let counted = row.pair.counted("row")?;
    row.check(policy("nftables", "forward", "drop"), counted).map(drop)
}

/// KUBE-FIREWALL keeps others off the loopback network.
#[test]
fn kube_firewall() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    let node = row.pair.lab.node();
    require!(iptables::can_load(node, "legacy"));
    let program = "iptables-legacy";
    for line in [
        "-N KUBE-FIREWALL",
        "-A OUTPUT -j KUBE-FIREWALL",
        "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment row -j DROP",
    ] {
        node.command(program, &line.split(' ').collect::<Vec<_>>(), "")?;
    }
    row.watch()?;
    row.from_node_to(&["127.0.0.1:9".parse()?])?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(Expect { action: "drop", ..other("iptables-legacy", "output", "host_firewall") }, counted).map(drop)
}
