//! Addresses that no Node or Pod object names.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use netpol_trace_tests::pair::SERVER;
use netpol_trace_tests::row::{DATAGRAMS, PORT, Row, datagrams};
use netpol_trace_tests::{require, test_name};

/// The address of the CNI's bridge, inside the pod network: kubelet's probes come from it.
const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);

/// NetworkPolicy always allows a pod's own node, whichever of its addresses a probe comes from.
#[test]
fn a_probe_from_the_nodes_bridge_is_the_nodes() -> Result<()> {
    let mut row = require!(Row::new(test_name!()));
    let node = row.pair.lab.node();
    node.ip(&format!("link add cni0 type bridge\naddress add {BRIDGE}/32 dev cni0\nlink set cni0 up\n"))?;
    row.pair.lab.enforce(
        "table inet t {\nchain c {\ntype filter hook output priority 0;\nudp dport 9 counter drop comment \"row\"\n}\n}\n",
    )?;
    row.watch()?;
    let source = datagrams(row.pair.lab.node(), BRIDGE.into(), (SERVER, PORT).into())?;
    row.note(source, (SERVER, PORT).into());
    row.seen(DATAGRAMS)?;
    for record in row.records()? {
        ensure!(record.text("/source/kind") == "node" && record.text("/source/node") == "node-a", "{record}");
        ensure!(record.text("/verdict/result") == "allowed" && record.cause() == "host_firewall", "{record}");
        ensure!(record.text("/enrichment") == "complete", "{record}");
    }
    Ok(())
}
